"""3FS's module of this name, on the client of the package `usrbio`.

Names, arguments and results are 3FS's; the page "For users of hf3fs_fuse.io" lists what is fixed.
"""

import fcntl
import os

from usrbio._usrbio import (
    deregister_fd,
    hardlink,
    ioring,
    iovec,
    mount_point,
    punch_hole,
    register_fd,
)

__all__ = [
    "deregister_fd",
    "extract_mount_point",
    "force_fsync",
    "hardlink",
    "ioring",
    "iovec",
    "punch_hole",
    "register_fd",
]

# The ioctl FSYNC of a 3FS mount. It takes no argument, whatever its number says.
_FSYNC = 0x8004680B


def extract_mount_point(path: str | os.PathLike[str]) -> str | None:
    """The mount point of the 3FS mount that holds `path`, or None."""
    try:
        return os.fspath(mount_point(os.fspath(path)))
    except OSError:
        return None


def force_fsync(fd: int) -> int:
    """Makes the length of a written file exact for everybody. 0, or -1 if that failed, as in 3FS."""
    try:
        return fcntl.ioctl(fd, _FSYNC)
    except OSError:
        return -1
