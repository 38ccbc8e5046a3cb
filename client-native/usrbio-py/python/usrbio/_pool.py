"""Rings and buffers that threads share, for readers that come and go.

A read takes a ring with its buffer out of the pool, and puts it back. A pool has a bounded number of them,
sized by what is read, and is of one mount and process. There is none where shared memory is too short.
"""

import contextlib
import errno
import os
import threading
import weakref
from collections.abc import Iterator
from typing import NamedTuple

from usrbio._files import Mount
from usrbio._iov import Iov
from usrbio._ring import Ring

_MOST = 16
"""Rings of a mount in a process: reads at a time."""

_BUDGET = 64 << 20
"""Bytes of their buffers together."""

_LEAST = 64 << 10
"""Bytes of a buffer, at least. Sizes are powers of two."""

_SHORT = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""There is no room for another one."""


class Tool(NamedTuple):
    """A ring and its buffer."""

    ring: Ring
    iov: Iov
    size: int
    """Bytes of the buffer."""


class Pool:
    """What one process has on one mount."""

    def __init__(self, mount: Mount, depth: int) -> None:
        self._mount = mount
        self._depth = depth
        self._changed = threading.Condition()
        self._idle: list[Tool] = []
        self._count = 0
        self._bytes = 0

    @contextlib.contextmanager
    def tool(self, wanted: int) -> Iterator[Tool | None]:
        """A ring with a buffer of `wanted` bytes, or a smaller one; None if there is no memory for any.

        Raises:
            OSError: it cannot be made for another reason.
        """
        tool = self._take(_size_for(wanted))
        try:
            yield tool
        except BaseException:
            # Requests may be in flight; it ends when they have.
            if tool is not None:
                self._drop(tool.size)
            raise
        if tool is not None:
            with self._changed:
                self._idle.append(tool)
                self._changed.notify()

    def _take(self, size: int) -> Tool | None:
        with self._changed:
            while True:
                self._idle.sort(key=lambda tool: tool.size)
                fitting = next((tool for tool in self._idle if tool.size >= size), None)
                if fitting is not None:
                    self._idle.remove(fitting)
                    return fitting
                if self._count < _MOST and self._bytes + size <= _BUDGET:
                    self._count += 1
                    self._bytes += size
                    break
                if self._idle:
                    return self._idle.pop()
                self._changed.wait()
        try:
            return Tool(Ring(self._mount, self._depth), Iov(self._mount, size), size)
        except OSError as error:
            self._drop(size)
            if error.errno not in _SHORT:
                raise
        except BaseException:
            self._drop(size)
            raise
        with self._changed:
            return self._idle.pop() if self._idle else None

    def _drop(self, size: int) -> None:
        with self._changed:
            self._count -= 1
            self._bytes -= size
            self._changed.notify()


class Pools:
    """The pools of a process, by mount."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._start()
        # A forked child inherits its parent's, and cannot use them.
        this = weakref.WeakMethod(self._start)
        os.register_at_fork(after_in_child=lambda: (start := this()) and start())

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._pools: dict[int, Pool] = {}

    def of(self, device: int, path: str) -> Pool:
        """That of the mount `device`, on which `path` lies."""
        with self._lock:
            if device not in self._pools:
                self._pools[device] = Pool(Mount(path), self._depth)
            return self._pools[device]


def _size_for(wanted: int) -> int:
    size = _LEAST
    while size < wanted:
        size *= 2
    return size
