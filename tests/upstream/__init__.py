"""Kubernetes' own end-to-end suite for storage drivers, against kube3fs."""
