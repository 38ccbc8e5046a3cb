"""3FS's Python interface to USRBIO rings, one request a call; `usrbio.Ring` takes whole arrays.

Names, arguments and results are 3FS's; the page "For users of hf3fs_fuse.io" lists what is fixed.
"""

import contextlib
import mmap
import os
import uuid
from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TYPE_CHECKING

import hf3fs_py_usrbio as _native
from hf3fs_py_usrbio import (
    deregister_fd,
    extract_mount_point,
    force_fsync,
    hardlink,
    register_fd,
)
from usrbio._usrbio import register_memory, reserve

if TYPE_CHECKING:
    from typing_extensions import Buffer

h3fio = _native
"""By this name programs import the native module from here."""

__all__ = [
    "IorPriority",
    "deregister_fd",
    "extract_mount_point",
    "force_fsync",
    "h3fio",
    "hardlink",
    "ioring",
    "iovec",
    "make_ioring",
    "make_iovec",
    "punch_hole",
    "read_file",
    "register_fd",
]


class IorPriority(IntEnum):
    """Which of the daemon's queues a ring goes to."""

    HIGH = -1
    NORMAL = 0
    LOW = 1


class iovec:
    """Shared memory that the daemon knows. Made by `make_iovec`; its slices are what requests are made of."""

    def __init__(self, iov: _native.iovec, link: str) -> None:
        self.iov = iov
        self.link = link

    def __getitem__(self, index: slice) -> _native.iovec:
        return self.iov[index]

    def __len__(self) -> int:
        return len(self.iov)


class ioring:
    """A ring for reads or for writes. Made by `make_ioring`."""

    def __init__(self, ior: _native.ioring) -> None:
        self.ior = ior

    def prepare(
        self, iov: "_native.iovec | iovec", read: bool, fd: int, off: int, userdata: object = None
    ) -> _native.ioring:
        """Queues a read or write of all bytes of `iov`, a slice or a whole, at byte `off` of the file `fd`.

        The file must be registered.

        Raises:
            OSError: EINVAL, wrong direction or no bytes; EBADF, not registered; EACCES, the file is not open
                for it; EAGAIN, the ring is full; ECHILD, the ring was made before a fork.
        """
        return self.ior.prepare(iov.iov if isinstance(iov, iovec) else iov, read, fd, off, userdata)

    def submit(self) -> _native.ioring:
        """Tells the daemon of what was prepared."""
        return self.ior.submit()

    def wait(
        self, *, max_results: int = 0, min_results: int = 0, timeout: timedelta | float | None = None
    ) -> list[_native.iovec]:
        """The iovecs of completed requests, with `result` (bytes or -errno: look at it) and `userdata` set.

        At most `max_results` of them, or `min_results` or 1 if that is more; it waits for `min_results`, for
        `timeout` (seconds or a timedelta) or as long as it takes.
        """
        return self.ior.wait(max_results=max_results, min_results=min_results, timeout=timeout)

    @staticmethod
    def size_for_entries(entries: int) -> int:
        """Bytes of shared memory that a ring of `entries` takes."""
        return _native.ioring.size_for_entries(entries)


def make_iovec(shm: SharedMemory, hf3fs_mount_point: str, block_size: int = 0, numa: int = -1) -> iovec:
    """Registers shared memory with the daemon. `shm` may be unlinked right afterwards.

    Args:
        shm: the memory.
        hf3fs_mount_point: whose daemon.
        block_size: bytes that the daemon registers at a time, and no request may straddle; 0 for all at once.
        numa: has no effect here.

    Raises:
        OSError: ENOSPC, `/dev/shm` has no room for all of `shm`; EACCES, the daemon knows another `/dev/shm`.
    """
    name = str(uuid.uuid4())
    blocks = f".b{block_size}" if block_size > 0 else ""
    file = Path("/dev/shm") / shm.name.lstrip("/")
    if shm.buf is None:
        raise ValueError("the shared memory is closed")
    # A mapping of our own: closing `shm` takes nothing away from a slice or a request in flight.
    with file.open("r+b") as opened:
        # Python reserves nothing: a full /dev/shm would be SIGBUS at the first touch.
        reserve(opened.fileno(), os.fspath(file), len(shm.buf))
        memory = mmap.mmap(opened.fileno(), len(shm.buf))
    # It goes with the last slice of the iovec.
    registration = register_memory(hf3fs_mount_point, name + blocks, os.fspath(file))
    iov = _native.iovec(
        memory, name, hf3fs_mount_point, block_size, numa, registration=registration, alias=shm.buf
    )
    return iovec(iov, os.fspath(registration.link))


def make_ioring(
    hf3fs_mount_point: str,
    entries: int,
    for_read: bool = True,
    io_depth: int = 0,
    priority: int | None = None,
    timeout: int | None = None,
    numa: int = -1,
    flags: int = 0,
) -> ioring:
    """Makes a ring.

    Args:
        hf3fs_mount_point: the mount whose files it is for.
        entries: requests that may be in flight.
        for_read: for reads, or else for writes.
        io_depth: 0, the daemon takes what is there; n, it waits until n requests are queued, for ever; -n, it
            takes up to n and waits for more until `timeout`.
        priority: an `IorPriority`.
        timeout: for a negative `io_depth`, in milliseconds.
        numa: NUMA node of the ring's memory; negative for any.
        flags: 1 allows reads of uncommitted data, 2 forbids reads of holes.
    """
    return ioring(
        _native.ioring(hf3fs_mount_point, entries, for_read, io_depth, priority, timeout, numa, flags)
    )


def punch_hole(
    filename: str | int | None = None,
    start: list[int] | None = None,
    end: list[int] | None = None,
    flags: int = 0,
    *,
    fd: int | None = None,
) -> None:
    """Frees the blocks of bytes `start[i]` to `end[i]` (not included) of a file, given by name or fd."""
    given = filename if fd is None else fd
    if given is None or start is None or end is None:
        raise TypeError("punch_hole wants a file name or an fd, and the starts and ends of the ranges")
    if isinstance(given, int):
        _native.punch_hole(given, start, end, flags)
        return
    fd = os.open(given, os.O_RDWR)
    try:
        _native.punch_hole(fd, start, end, flags)
    finally:
        os.close(fd)


def read_file(
    fn: str,
    hf3fs_mount_point: str | None = None,
    block_size: int = 1 << 30,
    off: int = 0,
    priority: int | None = None,
    cb: "Callable[[Buffer, int], int | bool | None] | None" = None,
) -> bytes | None:
    """Reads a file block by block through a ring of its own.

    Args:
        fn: the file.
        hf3fs_mount_point: of its mount; None to look it up.
        block_size: bytes of a block, and of shared memory, unless the file is smaller.
        off: where to start, in bytes.
        priority: an `IorPriority`.
        cb: called with each block and its offset; it may answer an int (go on there), True (stop) or nothing
            (go on behind the block).

    Returns:
        The bytes from `off` on, those of holes as zeros, or None if there is a `cb`.
    """
    mount = hf3fs_mount_point or extract_mount_point(fn)
    if mount is None:
        raise ValueError(f"{fn} is on no 3FS mount")
    with contextlib.ExitStack() as stack:
        fd = os.open(fn, os.O_RDONLY)
        stack.callback(os.close, fd)
        register_fd(fd)
        stack.callback(deregister_fd, fd)
        shm = SharedMemory(create=True, size=max(1, min(block_size, os.fstat(fd).st_size - off)))
        stack.callback(shm.close)
        try:
            iov = make_iovec(shm, mount)
        finally:
            shm.unlink()
        ior = make_ioring(mount, 1, priority=priority)
        stack.callback(ior.ior.destroy)
        return _blocks(ior, iov, fd, off, cb)


def _blocks(
    ior: ioring,
    iov: iovec,
    fd: int,
    off: int,
    cb: "Callable[[Buffer, int], int | bool | None] | None",
) -> bytes | None:
    parts: list[bytes] = []
    while True:
        # Before the read: what is appended meanwhile is the next block's.
        size = os.fstat(fd).st_size
        ior.prepare(iov[:], True, fd, off)
        ior.submit()
        (done,) = ior.wait(min_results=1)
        if done.result < 0:
            raise OSError(-done.result, os.strerror(-done.result))
        # A ring's read ends before a hole that the rest of the block lies in.
        count = max(done.result, min(len(iov), size - off))
        if count == 0:
            return b"".join(parts) if cb is None else None
        answer = None
        with memoryview(iov.iov)[:count] as block:
            block[done.result :] = bytes(count - done.result)
            if cb is None:
                parts.append(bytes(block))
            else:
                answer = cb(block, off)
        # True is an int too, but no place to go on at.
        if answer and isinstance(answer, bool):
            return None
        off = answer if answer else off + count
