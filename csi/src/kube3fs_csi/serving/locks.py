"""One call at a time for each volume or snapshot: the second is told so, not queued (CSI spec)."""

from collections.abc import Iterator
from contextlib import contextmanager

from kube3fs_csi.serving.errors import Busy


class KeyLocks:
    """The keys that calls work on now. For one event loop."""

    def __init__(self) -> None:
        self._held: set[str] = set()

    @contextmanager
    def hold(self, *keys: str) -> Iterator[None]:
        """Holds all of `keys`, or raises Busy and holds none."""
        for key in keys:
            if key in self._held:
                raise Busy(key)
        self._held.update(keys)
        try:
            yield
        finally:
            self._held.difference_update(keys)
