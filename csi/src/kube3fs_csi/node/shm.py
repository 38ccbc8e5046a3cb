"""The private tmpfs of each pod: the only place where usrbiod looks for the buffers of that pod's sessions.

It is mounted below the state folder with the pod's first volume, whichever the kubelet publishes first. A
volume of kind shm shows it at the pod's /dev/shm by a bind mount. It goes with the pod's last volume.
"""

import os
import threading
from pathlib import Path

from kube3fs_csi.node import mounts

MIN_BYTES = 1 << 20
"""What every pod's tmpfs has from its first volume on: usrbiod keeps three semaphores, each of a page, there
for every session. A pod without a volume of kind shm cannot reach it, so that nothing else can be in it."""


class SharedMemory:
    """The tmpfs mounts below `folder`. All methods block."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._mounting = threading.Lock()

    def ensure(self, pod_key: str) -> Path:
        """The pod's tmpfs, mounted if it is not."""
        path = self._folder / pod_key
        path.mkdir(mode=0o700, exist_ok=True)
        with self._mounting:  # the kubelet publishes the volumes of a pod side by side
            if not path.is_mount():
                mounts.mount_tmpfs(path, f"size={MIN_BYTES}")
        return path

    def show(self, pod_key: str, target: Path, size: int, huge: str) -> None:
        """Gives the pod's tmpfs its size, and shows it at `target`."""
        path = self.ensure(pod_key)
        mounts.remount_tmpfs(path, f"size={size}" + (f",huge={huge}" if huge else ""))
        mounts.bind(path, target)

    def open(self, pod_key: str) -> int:
        """An fd of the pod's tmpfs."""
        return os.open(self.ensure(pod_key), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def remove(self, pod_key: str) -> None:
        """Takes the pod's tmpfs away. None is success."""
        path = self._folder / pod_key
        mounts.unmount(path)
        if path.exists():
            path.rmdir()

    def pods(self) -> list[str]:
        """Keys of the pods that have a tmpfs, or a folder for one."""
        return [path.name for path in self._folder.iterdir()]
