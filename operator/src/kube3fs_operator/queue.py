"""A work queue of keys: each at most once in line, never twice at work, retried with growing delays."""

import asyncio
import heapq
import random
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_RETRY = 0.5
LAST_RETRY = 120.0


class WorkQueue(Generic[K]):
    """Keys to reconcile. A key added while it is at work comes again right after."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ready: dict[K, float] = {}  # key → since when; dicts keep the order
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._later: list[tuple[float, int, K]] = []
        self._due: dict[K, float] = {}  # the one valid entry of _later per key
        self._serial = 0
        self._changed = asyncio.Event()

    def add(self, key: K) -> None:
        """Reconcile soon."""
        if key in self._working:
            self._again.add(key)
        else:
            self._ready.setdefault(key, self._clock())
        self._changed.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Reconcile no later than after so many seconds. An earlier appointment stands."""
        due = self._clock() + seconds
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        self._serial += 1
        heapq.heappush(self._later, (due, self._serial, key))
        self._changed.set()

    async def take(self) -> K:
        """The next key; waits for one. Say `done` or `failed` afterwards."""
        while True:
            self._promote()
            if self._ready:
                key = next(iter(self._ready))
                del self._ready[key]
                self._working.add(key)
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(self._until_next()):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def done(self, key: K) -> None:
        """The key's work succeeded."""
        self._failures.pop(key, None)
        self._finish(key)

    def failed(self, key: K) -> float:
        """The key's work failed: it comes again after the returned delay, or sooner if something happens."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        doublings = min(failures - 1, 20)  # or the float overflows in two days
        seconds = min(LAST_RETRY, FIRST_RETRY * 2.0**doublings)
        delay = seconds * random.uniform(0.8, 1.2)  # noqa: S311 - jitter
        self._finish(key)
        self.add_after(key, delay)
        return delay

    def oldest_age(self) -> float:
        """Seconds that the key at the head of the line has waited."""
        since = next(iter(self._ready.values()), None)
        return 0.0 if since is None else self._clock() - since

    def _finish(self, key: K) -> None:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _promote(self) -> None:
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, _, key = heapq.heappop(self._later)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)

    def _until_next(self) -> float | None:
        return max(0.0, self._later[0][0] - self._clock()) if self._later else None
