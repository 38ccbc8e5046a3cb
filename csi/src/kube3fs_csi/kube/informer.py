"""A cache of all objects of a kind that follows the API server, and tells who waits for a change."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from kube3fs_crds import Resource
from kube3fs_csi.kube.objects import Objects, parse
from kube3fs_csi.serving.errors import CsiError

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Resource)

_WATCH_SECONDS = 300
RETRY_SECONDS = 1.0


class Informer(Generic[R]):
    """Objects by name (NAMESPACE/NAME where they have a namespace).

    `changed` is called with the name of one of which something else is wanted; not for what was reported of
    it, or every report of a failure would be the next attempt.
    """

    def __init__(
        self,
        objects: Objects,
        kind: type[R],
        field_selector: str = "",
        changed: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self._objects = objects
        self._kind = kind
        self._field_selector = field_selector
        self._changed = changed
        self._condition = asyncio.Condition()
        self.items: dict[str, R] = {}
        self.synced = asyncio.Event()

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
            except CsiError as error:
                log.warning("%s: %s", self._kind.__name__, error)
            except Exception:
                log.exception("following %s failed", self._kind.__name__)
            await asyncio.sleep(RETRY_SECONDS)

    async def wait_for(self, name: str, done: Callable[[R | None], bool], seconds: float) -> R | None:
        """The object as soon as `done` holds for it (None: it is not there); TimeoutError after `seconds`."""
        async with asyncio.timeout(seconds), self._condition:
            await self._condition.wait_for(lambda: done(self.items.get(name)))
            return self.items.get(name)

    async def _list(self) -> str:
        page = await self._objects.list(self._kind, self._field_selector)
        items = (readable(self._kind, body) for body in page.bodies)
        found = {key_of(item): item for item in items if item is not None}
        names = self.items.keys() | found.keys()
        self.items = found
        self.synced.set()
        for name in names:
            self._changed(name)
        await self._tell()
        return page.version

    async def _watch(self, version: str) -> str:
        """Follows the changes after `version` for a while; the version to go on from."""
        watch = self._objects.watch(self._kind, self._field_selector, version, _WATCH_SECONDS)
        async with aclosing(watch) as events:
            async for event in events:
                body = event["object"]
                version = body["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    await self._event(event["type"], body)
        return version

    async def _event(self, event: str, body: dict[str, Any]) -> None:
        item = readable(self._kind, body)
        if item is None:
            return
        name = key_of(item)
        before = self.items.pop(name, None)
        if event != "DELETED":
            self.items[name] = item
        if event == "DELETED" or before is None or wish(before) != wish(item):
            self._changed(name)
        await self._tell()

    async def _tell(self) -> None:
        async with self._condition:
            self._condition.notify_all()


def readable(kind: type[R], body: dict[str, Any]) -> R | None:
    """The model of an object; None of one that a newer version wrote, which must not hide the others."""
    try:
        return parse(kind, body)
    except ValidationError as error:
        name = body["metadata"]["name"]
        log.error("%s %s cannot be read and is left alone: %s", kind.__name__, name, error)
        return None


def wish(item: Resource) -> tuple[object, ...]:
    """What is not the same any more when somebody wants something else of an object."""
    meta = item.metadata
    return meta.uid, meta.generation, meta.deletion_timestamp, meta.finalizers


def key_of(item: Resource) -> str:
    """NAME, or NAMESPACE/NAME."""
    namespace = item.metadata.namespace
    return f"{namespace}/{item.metadata.name}" if namespace else item.metadata.name
