"""The room of a file system: one account for all data roots that lie on it.

A promise of so many bytes takes them from what is free until they are used: then they are not free any more.
So a new volume may have what is free less what is promised and not used yet, whoever made the promise.
"""

import logging
import threading
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

log = logging.getLogger(__name__)


class Root(Protocol):
    """A data root, as its neighbours see it."""

    thin: bool
    """Its promises are no promises of room: they keep nobody else from having it."""

    def reserved_here(self) -> int:
        """Bytes that were promised here and are not used yet."""


class FileSystem:
    """A file system with data roots on it. Promises are made one at a time, under `lock`."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.lock = threading.Lock()
        self._adding = threading.Lock()
        self._roots: WeakValueDictionary[Path, Root] = WeakValueDictionary()

    def add(self, path: Path, root: Root) -> None:
        """Counts `root` as long as somebody uses it, instead of an earlier one at the same path."""
        with self._adding:
            self._roots[path] = root

    def reserved(self) -> int:
        """Free bytes that a new volume may not have: what was promised firmly."""
        total = 0
        with self._adding:  # or a root that is opened meanwhile breaks the walk over the others
            roots = list(self._roots.items())
        for path, root in roots:
            if root.thin:
                continue
            try:
                total += root.reserved_here()
            except OSError as error:  # one that is broken must not take the others' room
                log.warning("what is promised in %s is not counted: %s", path, error)
        return total


_file_systems: WeakValueDictionary[str, FileSystem] = WeakValueDictionary()
_lock = threading.Lock()


def file_system(device: str) -> FileSystem:
    """The one of that device, MAJOR:MINOR as mountinfo has it, the same for every subvolume of btrfs."""
    with _lock:
        found = _file_systems.get(device)
        if found is None:
            found = _file_systems[device] = FileSystem(device)
        return found
