"""Mounts and the files on them."""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Protocol

from usrbio import _usrbio

# The ioctl FSYNC of a 3FS mount. It takes no argument, whatever its number says.
_FSYNC = 0x8004680B

_MODES = {
    "r": os.O_RDONLY,
    "r+": os.O_RDWR,
    "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    "w+": os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    "x+": os.O_RDWR | os.O_CREAT | os.O_EXCL,
}


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


class Mount:
    """A mount of type ``fuse.hf3fs``. It holds nothing open, and may be pickled.

    Args:
        path: the mount point, or any file or directory below it.

    Raises:
        FileNotFoundError: `path` does not exist.
        OSError: ENODEV, `path` is on no USRBIO mount.
    """

    path: str
    """The mount point."""

    device: int
    """Device number (``st_dev``) of the mount's files: equal for two paths to one mount."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(_usrbio.mount_point(os.fspath(path)))
        self.device = Path(self.path).stat().st_dev

    def __enter__(self) -> "Mount":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        pass

    def __repr__(self) -> str:
        return f"usrbio.Mount({self.path!r})"


class File(_usrbio.File):
    """A file of a mount, as requests name it.

    Args:
        source: a path, which is opened; or an open file or fd, which stays the caller's and may be closed
            afterwards.
        mode: for a path, as for `open`: ``r``, ``r+``, ``w``, ``w+``, ``x`` or ``x+``. Data is bytes, always.

    Raises:
        OSError: whatever opening the path raises; ENODEV, it is on no USRBIO mount.
        ValueError: another mode.
    """

    name: str
    """The path, or what the file or fd says of itself."""

    def __new__(cls, source: str | os.PathLike[str] | int | _HasFileno, mode: str = "r") -> "File":
        if isinstance(source, int):
            return cls._of(source, f"fd {source}")
        if not isinstance(source, str | os.PathLike):
            return cls._of(source.fileno(), str(getattr(source, "name", source)))
        flags = _MODES.get(mode.replace("b", ""))
        if flags is None:
            raise ValueError(f"mode {mode!r}: give one of {', '.join(_MODES)}")
        path = os.fspath(source)
        fd = os.open(path, flags | os.O_CLOEXEC, 0o666)
        try:
            return cls._of(fd, path)
        finally:
            os.close(fd)

    @classmethod
    def _of(cls, fd: int, name: str) -> "File":
        self = super().__new__(cls, fd, name)
        self.name = name
        return self

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.fileno()).st_size

    def sync(self) -> None:
        """Makes what was written durable, and its length exact for everybody.

        A write through a ring changes length and time of the file lazily, as 3FS does.
        """
        os.fsync(self.fileno())
        fcntl.ioctl(self.fileno(), _FSYNC)

    def __enter__(self) -> "File":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<usrbio.File {self.name!r}{' closed' if self.closed else ''}>"
