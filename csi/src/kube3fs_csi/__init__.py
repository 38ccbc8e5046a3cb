"""The CSI driver of kube3fs: volumes, private shared memory and RDMA devices."""

__version__ = "0.1.0"
