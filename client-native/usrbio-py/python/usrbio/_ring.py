"""Rings: arrays of requests in, an array of results out."""

import errno
import io
from array import array
from collections.abc import Generator, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from usrbio import _usrbio
from usrbio._errors import RequestError
from usrbio._files import Mount
from usrbio._iov import Iov
from usrbio._notifier import Notifier

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Ints: TypeAlias = int | Iterable[int] | Buffer
    """One integer, or one for each request: a NumPy array, `array.array`, list, range, ..."""

    Files: TypeAlias = _usrbio.File | Iterable[_usrbio.File]


class Ring:
    """A queue of requests to the daemon, for reads or for writes.

    Threads may share one: each call gets its own results. A ring works in the process that made it only.

    Args:
        mount: the mount whose files it is for.
        depth: requests that may be in flight, 1 or more. What a batch has more of follows as others complete.
        read: for reads, or else for writes.

    Raises:
        OSError: the mount does not answer, or ``/dev/shm`` is full.
        ValueError, OverflowError: a depth of 0 or less, or of many millions.
    """

    mount: Mount
    """The mount whose files it is for."""

    depth: int
    """Requests that may be in flight."""

    def __init__(self, mount: Mount, depth: int, *, read: bool = True) -> None:
        if depth < 1:
            raise ValueError(f"a ring of depth {depth}: give 1 or more")
        self._core = _usrbio.Ring(mount.path, mount.device, depth, read)
        self._notifier = Notifier(self._core)
        self._reads = read
        self.mount = mount
        self.depth = depth

    def read(
        self, file: "Files", offsets: "Ints", lengths: "Ints", iov: Iov, iov_offsets: "Ints | None" = None
    ) -> "array[int]":
        """Reads parts of a file into an Iov, and waits for all of them.

        Ctrl-C ends the call, not the requests: the next batch on the Iov waits until they are complete.

        Args:
            file: a file open for reading, or one for each request.
            offsets: where in the file, in bytes; shape ``(n,)``.
            lengths: how many bytes; shape ``(n,)``, or one number for all.
            iov: where to.
            iov_offsets: where in the Iov, in bytes; shape ``(n,)``. By default, one part after another.

        Returns:
            The bytes read of each request, an array of int64 of shape ``(n,)``. Fewer than asked for at the
            end of the file, or where the rest of the request is a hole; bytes of the Iov beyond them are as
            they were.

        Raises:
            RequestError: some requests failed; the error has the results of all.
            TypeError, ValueError, OverflowError: an argument is wrong; nothing was read.
            OSError: see the package.
        """
        if not self._reads:
            raise io.UnsupportedOperation(
                errno.EINVAL, "the ring is for writes: make one with read=True to read"
            )
        results, failed = self._core.run(file, offsets, lengths, iov, iov_offsets)
        if failed >= 0:
            raise RequestError(results, failed)
        return results

    def write(
        self, file: "Files", offsets: "Ints", lengths: "Ints", iov: Iov, iov_offsets: "Ints | None" = None
    ) -> "array[int]":
        """Writes parts of an Iov to a file, and waits for all of them. Arguments and errors as in `read`.

        Returns:
            The bytes written of each request: those asked for. `File.sync` makes the file's length exact for
            others.
        """
        if self._reads:
            raise io.UnsupportedOperation(
                errno.EINVAL, "the ring is for reads: make one with read=False to write"
            )
        results, failed = self._core.run(file, offsets, lengths, iov, iov_offsets)
        if failed >= 0:
            raise RequestError(results, failed)
        return results

    def submit(
        self, file: "Files", offsets: "Ints", lengths: "Ints", iov: Iov, iov_offsets: "Ints | None" = None
    ) -> "Batch":
        """Starts a batch, a read or a write as the ring is, and does not wait for it.

        Arguments and errors are those of `read`, but for errors of single requests, which `Batch.wait`
        raises. The Iov and the files stay until the batch is complete, even when the caller forgets them.
        """
        return Batch(self._core.submit(file, offsets, lengths, iov, iov_offsets), self._notifier)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._core.closed

    def close(self) -> None:
        """Waits for what is in flight and gives the ring back. In a forked child it only lets go of it.

        Raises:
            OSError: ENOTCONN, the daemon is gone and requests were in flight.
        """
        self._core.close()

    def __enter__(self) -> "Ring":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except OSError:
            # What went wrong first matters more.
            if error is None:
                raise

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ring cannot be pickled: make one in the process that uses it")

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        kind = "reads" if self._reads else "writes"
        return f"<usrbio.Ring of {self.depth} {kind} on {self.mount.path!r}{state}>"


class Batch:
    """Requests that were submitted together. ``await`` it, or `wait`.

    It makes progress while somebody waits on its ring, and when `Ring.close` does.
    """

    def __init__(self, core: _usrbio.Batch, notifier: Notifier) -> None:
        self._core = core
        self._notifier = notifier

    def done(self) -> bool:
        """Is it complete? Does not wait."""
        return self._core.done()

    def wait(self, timeout: float | None = None) -> "array[int]":
        """Waits until it is complete. May be called again, by any thread.

        Args:
            timeout: seconds, or None for as long as it takes.

        Returns:
            As `Ring.read` and `Ring.write`.

        Raises:
            TimeoutError: it is still in flight; wait again.
            RequestError: some requests failed.
            OSError: the ring cannot be used any more; see the package.
        """
        outcome = self._core.wait(timeout)
        if outcome is None:
            raise TimeoutError(
                errno.ETIMEDOUT, f"the batch is not complete after {timeout} s; it is still in flight"
            )
        results, failed = outcome
        if failed >= 0:
            raise RequestError(results, failed)
        return results

    def __await__(self) -> "Generator[object, None, array[int]]":
        """As `wait`. Cancelling the task leaves the batch in flight."""
        if not self._core.done():
            yield from self._notifier.watch(self._core)
        return self.wait()

    def __len__(self) -> int:
        """Its number of requests."""
        return len(self._core)

    def __repr__(self) -> str:
        return f"<usrbio.Batch of {len(self)} requests>"
