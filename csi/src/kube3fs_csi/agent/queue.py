"""Keys to look at: each once at a time, again after a while if looking at it failed."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from kube3fs_csi.serving.errors import CsiError

log = logging.getLogger(__name__)

_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 60.0


class KeyQueue:
    """Calls `reconcile` for added keys, a few at a time. Adding one that is being worked on repeats it."""

    def __init__(self, reconcile: Callable[[str], Awaitable[None]], workers: int = 32) -> None:
        self._reconcile = reconcile
        self._workers = workers
        self._ready: asyncio.Queue[str] = asyncio.Queue()
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
            self._ready.put_nowait(key)

    async def run(self) -> None:
        """Never returns; cancel it."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._workers):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            key = await self._ready.get()
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
        seconds = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2 ** (failures - 1))
        log.warning("%s: %s; again in %.0f s", key, why, seconds)
        asyncio.get_running_loop().call_later(seconds, self.add, key)
