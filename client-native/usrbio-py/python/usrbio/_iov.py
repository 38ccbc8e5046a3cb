"""Buffers in shared memory."""

from types import TracebackType
from typing import NoReturn

from usrbio import _usrbio
from usrbio._files import Mount

_CPU = (1, 0)
"""DLPack's name of the CPU."""


class Iov(_usrbio.Iov):
    """A buffer that the daemon reads and writes directly.

    It is a buffer of writable bytes to Python (`memoryview`, `numpy.frombuffer`, `torch.frombuffer`) and a
    tensor of uint8 to DLPack (`numpy.from_dlpack`, `torch.from_dlpack`), of shape ``(size,)``, without a
    copy. Its memory stays for as long as a view of it or a request on it lives, whatever is closed or
    collected before.

    Args:
        mount: the mount that it is for.
        size: bytes, 1 or more. All of them are taken from ``/dev/shm`` at once.

    Raises:
        OSError: ENOSPC, ``/dev/shm`` is too small; ENOTCONN or others if the daemon does not answer.
        ValueError: a size of 0.
    """

    mount: Mount
    """The mount that it is for."""

    def __new__(cls, mount: Mount, size: int) -> "Iov":
        self = super().__new__(cls, mount.path, mount.device, size)
        self.mount = mount
        return self

    def __enter__(self) -> "Iov":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A capsule as the Python array API standard wants it."""
        if stream is not None:
            raise BufferError("an Iov is memory of the CPU, which has no streams")
        if dl_device not in (None, _CPU):
            raise BufferError(f"an Iov is memory of the CPU, not of device {dl_device}")
        if copy:
            raise BufferError("an Iov is shown without a copy only")
        return self.dlpack(max_version is not None and max_version[0] >= 1)

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Iov cannot be pickled: make one in the process that uses it")

    def __repr__(self) -> str:
        return (
            "<usrbio.Iov closed>"
            if self.closed
            else f"<usrbio.Iov of {len(self)} bytes on {self.mount.path!r}>"
        )
