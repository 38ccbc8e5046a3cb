"""Keys to look at: each once at a time, again after a while if looking at it failed."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable

from kube3fs_csi.serving.errors import CsiError

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 60.0


class KeyQueue:
    """Calls `reconcile` for added keys. Adding one that is being worked on repeats it.

    A few at a time of each group: those of one group may all wait for one disk, and hold up no others.
    """

    def __init__(
        self,
        reconcile: Callable[[str], Awaitable[None]],
        group_of: Callable[[str], str] = lambda _key: "",
        at_once: int = 32,
    ) -> None:
        self._reconcile = reconcile
        self._group_of = group_of
        self._at_once = at_once
        self._ready: dict[str, deque[str]] = {}
        self._workers: Counter[str] = Counter()
        self._tasks: asyncio.TaskGroup | None = None
        self._waiting: set[str] = set()
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}

    def add(self, key: str) -> None:
        """Has `key` looked at soon."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            group = self._group_of(key)
            self._ready.setdefault(group, deque()).append(key)
            self._start(group)

    async def run(self) -> None:
        """Never returns; cancel it."""
        async with asyncio.TaskGroup() as self._tasks:
            try:
                for group in list(self._ready):
                    self._start(group)
                await asyncio.Event().wait()
            finally:
                self._tasks = None  # who adds one after the end is told nothing: a successor does it

    def _start(self, group: str) -> None:
        if self._tasks is None:
            return
        free = self._at_once - self._workers[group]
        for _ in range(min(free, len(self._ready.get(group, ())))):
            self._workers[group] += 1
            self._tasks.create_task(self._work(group))

    async def _work(self, group: str) -> None:
        """Ends when nothing of the group waits."""
        try:
            while ready := self._ready.get(group):
                await self._look_at(ready.popleft())
        finally:
            self._workers[group] -= 1
            if not self._workers[group]:
                del self._workers[group]
                if not self._ready.get(group):
                    self._ready.pop(group, None)

    async def _look_at(self, key: str) -> None:
        self._waiting.discard(key)
        self._running.add(key)
        try:
            await self._reconcile(key)
            self._failures.pop(key, None)
        except (CsiError, OSError) as error:
            self._retry(key, str(error))
        except Exception as error:
            log.exception("%s: a defect", key)
            self._retry(key, str(error))
        finally:
            self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _retry(self, key: str, why: str) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        seconds = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** (min(failures, 10) - 1))
        log.warning("%s: %s; again in %.0f s", key, why, seconds)
        asyncio.get_running_loop().call_later(seconds, self.add, key)
