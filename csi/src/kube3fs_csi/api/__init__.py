"""gRPC stubs of CSI and the kubelet's plugin APIs, made by `make stubs` from their pinned Go modules."""
