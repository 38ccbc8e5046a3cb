"""Volumes as btrfs subvolumes: limits by qgroups, snapshots and clones at once, whatever their size."""

import logging
import os
from pathlib import Path
from typing import Literal

from kube3fs_csi.backends.base import Backend, Features, Progress, Usage, remove_tree
from kube3fs_csi.node.commands import CommandFailed, run
from kube3fs_csi.serving.errors import CsiError

log = logging.getLogger(__name__)

_SUBVOLUME_INODE = 256
"""Inode number of the root of every subvolume (BTRFS_FIRST_FREE_OBJECTID)."""


class BtrfsBackend(Backend):
    """See the module."""

    name: Literal["btrfs"] = "btrfs"

    def __init__(self, root: Path) -> None:
        super().__init__(root, Features(quota=True, reflink=True, snapshot=True))

    def prepare(self) -> None:
        """Turns quotas on, for the whole file system: without them nothing holds a volume to its size."""
        run("btrfs", "quota", "enable", str(self.root))
        super().prepare()

    def empty_trash(self) -> bool:
        """See Backend. Also drops the qgroups that deleted subvolumes leave behind."""
        full = self._trash()
        more = super().empty_trash()
        if full:
            try:
                run("btrfs", "qgroup", "clear-stale", str(self.root))
            except CommandFailed as error:  # the kernel still cleans the subvolume up; the next time will do
                log.debug("%s", error)
        return more

    def _measure(self, name: str) -> Usage:
        """Bytes as the qgroup counts them, at the last commit. Inodes have no limit and are not counted."""
        path = self.existing("volume", name)
        referenced, exclusive = parse_qgroup(
            run("btrfs", "qgroup", "show", "--raw", "-f", str(path)), _subvolume_id(path)
        )
        return Usage(self.capacity(name), referenced, 0, 0, exclusive)

    def _make(self, path: Path) -> None:
        run("btrfs", "subvolume", "create", str(path))

    def _copy(self, source: Path, path: Path, progress: Progress) -> None:
        run("btrfs", "subvolume", "snapshot", str(source), str(path))

    def _limit(self, path: Path, capacity: int) -> None:
        run("btrfs", "qgroup", "limit", str(capacity), str(path))

    def _discard(self, path: Path) -> bool:
        if path.lstat().st_ino == _SUBVOLUME_INODE:
            run("btrfs", "subvolume", "delete", str(path))
            return True
        return remove_tree(path)

    def _sync(self, path: Path) -> None:
        run("btrfs", "filesystem", "sync", str(path))


def _subvolume_id(path: Path) -> int:
    return int(run("btrfs", "inspect-internal", "rootid", str(path)))


def parse_qgroup(shown: str, subvolume: int) -> tuple[int, int]:
    """Bytes that `subvolume` refers to, and of these its own, from `btrfs qgroup show --raw`."""
    for line in shown.splitlines():
        columns = line.split()
        if columns and columns[0] == f"0/{subvolume}":
            return int(columns[1]), int(columns[2])
    raise CsiError(
        f"btrfs has no qgroup 0/{subvolume}; were quotas turned off? `btrfs quota enable` turns them on"
    )


def is_btrfs(path: Path) -> bool:
    """Whether subvolumes can be made below `path`."""
    return run("stat", "-f", "-c", "%T", os.fspath(path)).strip() == "btrfs"
