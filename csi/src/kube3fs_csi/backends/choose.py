"""Picks the back end for a data root."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from kube3fs_csi.backends.base import Backend, DataMissing
from kube3fs_csi.backends.btrfs import BtrfsBackend, is_btrfs
from kube3fs_csi.backends.directory import DirectoryBackend
from kube3fs_csi.serving.errors import Precondition

_PROBE = "trusted.kube3fs.probe"


def open_root(root: Path, data_dirs: Sequence[Path], known: bool = False) -> Backend:
    """The back end of the directory `root` below one of `data_dirs`, made if need be unless it is `known`."""
    if ".." in root.parts or not any(root == folder or folder in root.parents for folder in data_dirs):
        raise Precondition(
            f"the node plugin does not see {root}: choose a path below {' or '.join(map(str, data_dirs))}, "
            "or add its folder to csi.node.dataDirs of the chart"
        )
    if known and not (root / "volumes").is_dir():
        raise DataMissing(
            f"{root} has been used, and the volumes that it had are not there: mount its disk again. "
            f"If they are gone for good, make the folder {root / 'volumes'}"
        )
    if root.resolve() != root:  # before anything is made there
        raise Precondition(f"{root} leads through a symbolic link; name the folder {root.resolve()} itself")
    root.mkdir(parents=True, exist_ok=True)
    backend = BtrfsBackend(root) if is_btrfs(root) else DirectoryBackend(root)
    backend.prepare()
    _check_attributes(root / "volumes")
    return backend


def _check_attributes(folder: Path) -> None:
    """Sizes are kept in extended attributes: what cannot have any is no place for volumes."""
    try:
        os.setxattr(folder, _PROBE, b"")
        os.removexattr(folder, _PROBE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # it keeps some, and volumes on a full file system must still be mounted and deleted
        if error.errno != errno.EOPNOTSUPP:
            raise
        raise Precondition(
            f"the file system of {folder} keeps no extended attributes (trusted.*): use ext4, XFS or btrfs"
        ) from error
