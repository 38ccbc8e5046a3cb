"""The privileged half: mounts, the daemon's control socket, state on disk. No gRPC and no Kubernetes."""
