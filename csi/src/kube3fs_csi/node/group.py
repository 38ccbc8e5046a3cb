"""Lets a group write into a volume (fsGroup of a pod), as the kubelet does it with `OnRootMismatch`."""

import os
import stat
from pathlib import Path

_DIRECTORY_BITS = stat.S_ISGID | stat.S_IRWXG
_FILE_BITS = stat.S_IRGRP | stat.S_IWGRP


def give_to_group(root: Path, group: int) -> None:
    """Hands all of `root` to `group`, unless the root directory itself is the group's already.

    Never follows a link: a pod may be writing there.
    """
    now = root.lstat()
    if now.st_gid == group and now.st_mode & _DIRECTORY_BITS == _DIRECTORY_BITS:
        return
    for _path, folders, files, fd in os.fwalk(root, topdown=False, follow_symlinks=False):
        for name in (*folders, *files):
            _give(name, fd, group)
    _give(str(root), None, group)  # last: a walk that was cut off starts again


def _give(name: str, folder: int | None, group: int) -> None:
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        return
    try:
        mode = os.fstat(fd).st_mode
        os.chown(name, -1, group, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISLNK(mode):
            bits = _DIRECTORY_BITS if stat.S_ISDIR(mode) else _FILE_BITS
            Path(f"/proc/self/fd/{fd}").chmod(stat.S_IMODE(mode) | bits)
    finally:
        os.close(fd)
