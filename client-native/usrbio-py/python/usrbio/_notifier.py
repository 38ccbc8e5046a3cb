"""Tells asyncio of completions: a thread that waits, since `select` cannot wait for a ring."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Generator
from typing import NamedTuple

from usrbio import _usrbio

_LINGER = 0.05
"""Seconds that the thread stays without work. At its exit the interpreter waits for it."""

_SILENCE = 1.0
"""Seconds without a completion after which the daemon is asked whether it is still there."""


class _Watched(NamedTuple):
    batch: _usrbio.Batch
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[None]"

    def tell(self, error: Exception | None) -> None:
        """Called in the loop's own thread."""
        if self.future.done():
            return  # cancelled
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


class Notifier:
    """One for each ring. Its thread runs while somebody awaits a batch."""

    def __init__(self, ring: _usrbio.Ring) -> None:
        self._ring = ring
        self._changed = threading.Condition()
        self._watched: list[_Watched] = []
        self._running = False

    def watch(self, batch: _usrbio.Batch) -> Generator[object, None, None]:
        """What `await` iterates over, until the batch is complete."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._changed:
            self._watched.append(_Watched(batch, loop, future))
            self._changed.notify()
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="usrbio-notifier", daemon=False).start()
        yield from future

    def _run(self) -> None:
        seen, heard = 0, time.monotonic()
        while watched := self._next():
            error: Exception | None = None
            try:
                # Counted before the batches are looked at: what completes in between is not missed.
                completed = self._ring.wait_completed(seen)
                if completed != seen:
                    seen, heard = completed, time.monotonic()
                elif time.monotonic() - heard > _SILENCE:
                    self._ring.check_served()
                    heard = time.monotonic()
            except Exception as failure:
                error = failure
            for item in watched:
                self._look_at(item, error)

    def _next(self) -> list[_Watched]:
        """Those who wait; none if the thread should end."""
        with self._changed:
            if not self._watched:
                self._changed.wait(_LINGER)
            self._watched = [item for item in self._watched if not item.future.done()]
            self._running = bool(self._watched)
            return list(self._watched)

    def _look_at(self, item: _Watched, error: Exception | None) -> None:
        try:
            if item.batch.done():
                error = None
            elif error is None:
                return
        except OSError as failure:
            error = failure
        with self._changed:
            self._watched.remove(item)
        # A loop that is closed has nobody who waits.
        with contextlib.suppress(RuntimeError):
            item.loop.call_soon_threadsafe(item.tell, error)
