"""RDMA devices: discovery, CDI specs, and the kubelet device plugin that hands them to pods."""
