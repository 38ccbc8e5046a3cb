"""Where things lie. Nothing here touches the disk."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = Path(__file__).resolve().parent / "modules"
MANIFESTS = Path(__file__).resolve().parent / "manifests"

# What is built, by content: worktrees of one user share it, as they share Go's own cache.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kube3fs"

# One folder per cluster that lives, or was killed before it could clean up.
STATE = Path("/var/lib/kube3fs-cluster")

# A node has its own of each. Where the machine has none they are made, to mount on, and removed after.
# The first ones are on disk, in the node's folder; the others hold little and are in memory.
# One mount each: with two stacked on /var/lib/kubelet containerd takes it for not shared.
NODE_PLACES_ON_DISK = ("/var/lib/kube3fs", "/var/lib/kubelet", "/var/log/pods")
NODE_PLACES_IN_MEMORY = (
    "/dev/infiniband",
    "/etc/cdi",
    "/etc/cni",
    "/run/cdi",
    "/run/containerd",
    "/run/kube3fs",
    "/run/netns",
    "/run/nri",
    "/var/lib/cni",
    "/var/log/containers",
)
