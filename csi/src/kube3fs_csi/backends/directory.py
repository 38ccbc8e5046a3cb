"""Volumes as plain directories, on any file system.

Copies are reflinks where the file system has them and real copies otherwise, made while pods may write: a
snapshot of a volume in use is what a backup program would see, not one moment. Project quotas hold
sizes where the mount has them; elsewhere a volume can outgrow its size, and a condition of the StorageVolume
says so.
"""

import errno
import fcntl
import logging
import os
import tempfile
import threading
import time
import zlib
from pathlib import Path
from typing import Literal

from kube3fs_csi.backends.base import Backend, Features, Progress, Usage, remove_tree
from kube3fs_csi.node import mounts, trees
from kube3fs_csi.node.commands import run

log = logging.getLogger(__name__)

_FICLONE = 0x40049409  # ioctl_ficlonerange(2)
_DEAR_SECONDS = 1.0
_COUNT_SECONDS = 300
"""A volume that takes longer to count is said to use what was counted by then."""
_SHARED = "trusted.kube3fs.shared"
"""Of a volume or snapshot with a copy that may share its blocks, or that is such a copy."""
_QUOTA_OPTIONS = frozenset({"prjquota", "pquota"})


class DirectoryBackend(Backend):
    """See the module."""

    name: Literal["directory"] = "directory"

    def __init__(self, root: Path) -> None:
        mount = mounts.mount_of(root)
        quota = bool(_QUOTA_OPTIONS & mount.super_options)
        super().__init__(root, Features(quota=quota, reflink=has_reflink(root), snapshot=False))
        self._mount_point = mount.path
        self._measured = _Measured()

    def _measure(self, name: str) -> Usage:
        """Bytes and inodes counted by walking the volume, a few per cent of the time (`_Measured`)."""
        path = self.existing("volume", name)
        used, inodes = self._measured.measure(path)
        # What a copy shares is written anew when either changes it: then it takes room again.
        owned = 0 if _SHARED in os.listxattr(path) else used
        return Usage(self.capacity(name), used, 0, inodes, owned)

    def _make(self, path: Path) -> None:
        path.mkdir()
        if self.features.quota and path.name.startswith("volume-"):
            # What is made below has the project of its folder.
            run("chattr", "-p", str(project_id(path.name)), "+P", str(path))

    def _copy(self, source: Path, path: Path, progress: Progress) -> None:
        self._make(path)
        if self.features.reflink:
            for shared in (source, path):
                os.setxattr(shared, _SHARED, b"")
        trees.copy(source, path, progress)

    def _limit(self, path: Path, capacity: int) -> None:
        if self.features.quota:
            project = project_id(path.name)
            blocks = -(-capacity // 1024)  # setquota counts KiB
            run("setquota", "-P", str(project), "0", str(blocks), "0", "0", str(self._mount_point))

    def _discard(self, path: Path) -> bool:
        return remove_tree(path)

    def _sync(self, path: Path) -> None:
        run("sync", "--file-system", str(path), timeout=600)


def project_id(name: str) -> int:
    """The quota project of a volume: below 2^31 and not 0, which is everybody's."""
    return zlib.crc32(name.removeprefix("volume-").encode()) % 0x7FFF_FFFE + 1


def has_reflink(root: Path) -> bool:
    """Whether files below `root` can share their blocks. Needs no room: a full file system is one, too."""
    try:
        with tempfile.TemporaryFile(dir=root) as one, tempfile.TemporaryFile(dir=root) as other:
            try:
                fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
            except OSError:
                return False
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False  # no copy can be made now; a later start of the node plugin looks again
    return True


class _Measured:
    """Remembers what walks of volumes found, where a walk is dear: for twenty times what it took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Path, tuple[float, tuple[int, int]]] = {}

    def measure(self, path: Path) -> tuple[int, int]:
        with self._lock:
            good_until, found = self._found.get(path, (0.0, (0, 0)))
        start = time.monotonic()
        if start < good_until:
            return found
        counted = trees.count(path, _COUNT_SECONDS)
        if not counted.complete:
            log.warning("%s was not counted to its end: it has %d inodes at least", path, counted.inodes)
        found = counted.used, counted.inodes
        now = time.monotonic()
        with self._lock:
            self._found = {key: value for key, value in self._found.items() if key.exists()}
            dear = now - start > _DEAR_SECONDS
            self._found[path] = (now + 20 * (now - start) if dear else 0.0, found)
        return found
