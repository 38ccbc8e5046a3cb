"""A real Kubernetes to test on, in namespaces of its own: `python3 -m tests.cluster --help`."""
