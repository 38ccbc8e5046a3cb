"""The node plugin's gRPC services, over the privileged half in `kube3fs_csi.node`."""
