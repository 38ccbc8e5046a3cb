"""Threads for calls that may never return.

A disk that hangs keeps every thread that asks it, for as long as it likes. So each data root has threads of
its own, a few for each purpose, and nobody waits for them without a deadline: calls of one root never wait
for those of another, and taking a mount away never waits for a call that is stuck in the disk below it.

The threads end when there is nothing to do, and do not keep the process from ending.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

from kube3fs_csi.serving.errors import Busy, DeadlineNear, Unavailable

T = TypeVar("T")

Purpose = Literal["call", "make", "mount", "unmount", "measure", "copy", "look", "trash", "group"]
_THREADS: dict[Purpose, int] = {
    "call": 4, "make": 4, "mount": 4, "unmount": 4, "measure": 4, "copy": 2, "look": 2, "trash": 1,
    "group": 32,
}  # fmt: skip
_MOST_WAITING = 256
CALL_SECONDS = 30.0
"""How long a CSI call waits for a data root. The kubelet gives a call two minutes."""


class Stuck(DeadlineNear):
    """The work goes on in its thread. Until it ends, nothing else is done under its key."""


class Lane:
    """`threads` threads for `about`, which is named in errors. For one event loop."""

    def __init__(
        self,
        about: str,
        threads: int,
        call_seconds: float = CALL_SECONDS,
        most_waiting: int = _MOST_WAITING,
    ) -> None:
        self._about = about
        self._threads = threads
        self._call_seconds = call_seconds
        self._most_waiting = most_waiting
        self._lock = threading.Lock()
        self._running = 0
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._keys: set[str] = set()

    async def run(
        self,
        what: str,
        work: Callable[[], T],
        seconds: float | None = 0,
        discard: Callable[[T], object] = lambda _result: None,
    ) -> T:
        """What `work` returns, from a thread.

        After `seconds` (None: never; 0: the lane's own) Stuck is raised; the work may go on, and its result
        goes to `discard`. `what` says what is worked on, such as "volume v1": Busy while there is such work
        already. Unavailable when too many wait.
        """
        seconds = self._call_seconds if seconds == 0 else seconds
        future = self._submit(what, work)
        waiter = asyncio.wrap_future(future)
        waiter.add_done_callback(lambda done: done.cancelled() or done.exception())  # asked for: no warning
        try:
            await asyncio.wait({waiter}, timeout=seconds)
        except asyncio.CancelledError:
            self._abandon(future, discard)
            raise
        if waiter.done():
            return waiter.result()
        self._abandon(future, discard)
        raise Stuck(
            f"{self._about} has not answered for {seconds:.0f} s, while working on {what}: slow or hung. "
            "Look at its disk; the work goes on, and the same call finds its result later"
        )

    def _submit(self, what: str, work: Callable[[], T]) -> "Future[T]":
        with self._lock:
            if what in self._keys:
                raise Busy(f"{what}, and waits for {self._about}")
            if len(self._waiting) >= self._most_waiting:
                raise Unavailable(
                    f"{len(self._waiting)} calls wait for {self._about}, which is slow or hangs; retry"
                )
            future: Future[T] = Future()
            self._keys.add(what)
            future.add_done_callback(lambda _done: self._release(what))
            self._waiting.append((future, work))
            is_another = self._running < self._threads
            self._running += is_another
        if is_another:
            try:
                threading.Thread(target=self._serve, name=self._about[:64], daemon=True).start()
            except RuntimeError as error:  # the node has no room for another
                with self._lock:
                    self._running -= 1
                    is_served = self._running > 0  # by one that was there
                if not is_served:
                    self._abandon(future, lambda _result: None)
                    raise Unavailable(
                        f"no thread can be started for {self._about}: {error}; retry"
                    ) from error
        return future

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running -= 1
                    return
                future, work = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, work  # or the next wait keeps them

    def _release(self, what: str) -> None:
        with self._lock:
            self._keys.discard(what)

    def _abandon(self, future: "Future[T]", discard: Callable[[T], object]) -> None:
        def done(late: "Future[T]") -> None:
            if not late.cancelled() and late.exception() is None:
                discard(late.result())

        if not future.cancel():
            future.add_done_callback(done)
            return
        with self._lock:
            self._waiting = deque(call for call in self._waiting if call[0] is not future)


class Lanes:
    """The lanes of every cluster by purpose. For one event loop."""

    def __init__(self, call_seconds: float = CALL_SECONDS) -> None:
        self._call_seconds = call_seconds
        self._lanes: dict[tuple[str, Purpose], Lane] = {}

    def of(self, cluster: str, purpose: Purpose) -> Lane:
        """The lane for work on the data root of `cluster`; '' for what belongs to no data root."""
        key = (cluster, purpose)
        if key not in self._lanes:
            about = f"the storage of StorageCluster {cluster}" if cluster else "the node"
            self._lanes[key] = Lane(about, _THREADS[purpose], self._call_seconds)
        return self._lanes[key]
