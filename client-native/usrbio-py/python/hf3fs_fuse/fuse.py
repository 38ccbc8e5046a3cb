"""Where a 3FS mount is, by its path alone."""

from pathlib import PurePosixPath


def get_mount_point(p: str) -> str:
    """The first three components of `p`, which is where 3FS's own machines have their mounts.

    `hf3fs_fuse.io.extract_mount_point` looks the mount up instead.
    """
    return str(PurePosixPath(*PurePosixPath(p).parts[:3]))
