"""Volumes as plain directories, on any file system.

Copies are reflinks where the file system has them and real copies otherwise, made by cp(1) while pods may
write: a snapshot of a volume in use is what a backup program would see, not one moment. Project quotas hold
sizes where the mount has them; elsewhere a volume can outgrow its size, and a condition of the StorageVolume
says so.
"""

import errno
import fcntl
import os
import subprocess
import tempfile
import threading
import time
import zlib
from pathlib import Path
from stat import S_ISDIR
from typing import Literal

from kube3fs_csi.backends.base import Backend, Features, Progress, Usage, remove_tree
from kube3fs_csi.node import mounts
from kube3fs_csi.node.commands import C_LOCALE, CommandFailed, run
from kube3fs_csi.serving.errors import Exhausted

_FICLONE = 0x40049409  # ioctl_ficlonerange(2)
_POLL_SECONDS = 0.5
_BLOCK = 512  # st_blocks
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
        total, _ = tree_usage(source)
        self._make(path)
        if self.features.reflink:
            for shared in (source, path):
                os.setxattr(shared, _SHARED, b"")
        argv = [
            "cp",
            "-a",
            "--reflink=auto",
            "--sparse=auto",
            "--no-target-directory",
            str(source),
            str(path),
        ]
        with (
            tempfile.TemporaryFile() as errors,
            subprocess.Popen(argv, stderr=errors, env=C_LOCALE) as copier,
        ):
            while True:
                try:
                    copier.wait(_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    # copy_file_range(2) counts as writing.
                    progress(min(total, _written(copier.pid)), total)
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines()
        if copier.returncode and not _only_vanished(words, source):
            last = words[-1] if words else f"exit status {copier.returncode}"
            if last.endswith(os.strerror(errno.ENOSPC)):
                raise Exhausted(f"{self.root} has no room for a copy of {source.name}: {last}")
            raise CommandFailed(f"copying {source.name} failed: {last}")
        progress(total, total)

    def _limit(self, path: Path, capacity: int) -> None:
        if self.features.quota:
            project = project_id(path.name)
            blocks = -(-capacity // 1024)  # setquota counts KiB
            run("setquota", "-P", str(project), "0", str(blocks), "0", "0", str(self._mount_point))

    def _discard(self, path: Path) -> None:
        remove_tree(path)

    def _sync(self, path: Path) -> None:
        run("sync", "--file-system", str(path), timeout=600)


def _only_vanished(words: list[str], source: Path) -> bool:
    """Whether cp met nothing worse than files that a pod removed or renamed meanwhile."""
    gone = os.strerror(errno.ENOENT)
    return bool(words) and all(line.endswith(gone) and f"'{source}/" in line for line in words)


def _written(pid: int) -> int:
    """Bytes that a child, which was not waited for, has written: `wchar` of proc_pid_io(5)."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["wchar"])


def project_id(name: str) -> int:
    """The quota project of a volume: below 2^31 and not 0, which is everybody's."""
    return zlib.crc32(name.removeprefix("volume-").encode()) % 0x7FFF_FFFE + 1


def has_reflink(root: Path) -> bool:
    """Whether files below `root` can share their blocks."""
    with tempfile.TemporaryFile(dir=root) as one, tempfile.TemporaryFile(dir=root) as other:
        one.write(b"x" * 4096)
        one.flush()
        try:
            fcntl.ioctl(other.fileno(), _FICLONE, one.fileno())
        except OSError:
            return False
    return True


def tree_usage(path: Path) -> tuple[int, int]:
    """Bytes on disk and inodes below `path`, hard links counted once."""
    used, count = 0, 0
    seen: set[int] = set()
    for _folder, folders, files, fd in os.fwalk(path, follow_symlinks=False):
        for name in (".", *files, *folders):
            try:
                stat = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if S_ISDIR(stat.st_mode):
                if name != ".":  # it is walked, too
                    continue
            elif stat.st_nlink > 1:  # others are not met again: most need no memory
                if stat.st_ino in seen:
                    continue
                seen.add(stat.st_ino)
            count += 1
            used += stat.st_blocks * _BLOCK
    return used, count


class _Measured:
    """Remembers what walks of volumes found, for as long as a walk is dear: twenty times what it took."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Path, tuple[float, tuple[int, int]]] = {}

    def measure(self, path: Path) -> tuple[int, int]:
        with self._lock:
            good_until, found = self._found.get(path, (0.0, (0, 0)))
        start = time.monotonic()
        if start < good_until:
            return found
        found = tree_usage(path)
        now = time.monotonic()
        with self._lock:
            self._found = {key: value for key, value in self._found.items() if key.exists()}
            self._found[path] = (now + 20 * (now - start), found)
        return found
