"""The operator of kube3fs: storage clusters from custom resources."""
