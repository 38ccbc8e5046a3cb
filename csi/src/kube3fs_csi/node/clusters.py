"""The StorageClusters that this node serves, and the back end of each one's data root."""

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kube3fs_csi.backends.base import Backend
from kube3fs_csi.backends.choose import open_root
from kube3fs_csi.node.state import write_atomically
from kube3fs_csi.serving.errors import CsiError, Precondition

log = logging.getLogger(__name__)


@dataclass
class Served:
    """A cluster's data root. `backend` is None while it cannot be used, and `message` says why."""

    path: Path
    backend: Backend | None = None
    message: str = ""
    device: int = 0


class Clusters:
    """Clusters by NAMESPACE/NAME. What was set last is remembered on disk: a restart needs no API server.

    Methods block, and are not to be called by two threads at once, except `backend`.
    """

    def __init__(self, memory: Path, data_dirs: Sequence[Path]) -> None:
        self._memory = memory
        self._data_dirs = data_dirs
        self._served: dict[str, Served] = {}
        self._known: dict[str, str] = {}
        """Data roots that were used. They are not laid out anew: an empty one lacks its disk."""
        with contextlib.suppress(FileNotFoundError):
            self._known = json.loads(memory.read_bytes())
        self._open({name: Path(path) for name, path in self._known.items()})

    def set(self, wanted: Mapping[str, Path]) -> None:
        """Serves exactly these clusters by their data roots. Those that could not be used are tried again."""
        self._open(wanted)
        known = {
            name: str(served.path)
            for name, served in self._served.items()
            if served.backend is not None or self._is_known(name, served.path)
        }
        if known != self._known:
            write_atomically(self._memory, json.dumps(known).encode(), sync=True)
            self._known = known

    def all(self) -> dict[str, Served]:
        """Every cluster that this node was asked to serve."""
        return dict(self._served)

    def backend(self, cluster: str) -> Backend:
        """The back end of `cluster`, or the reason why there is none."""
        served = self._served.get(cluster)
        if served is None:
            raise Precondition(
                f"this node does not serve the StorageCluster {cluster}; see its nodeSelector, "
                "and `kubectl get storagenode` for what each node serves"
            )
        if served.backend is None:
            raise Precondition(f"StorageCluster {cluster} cannot be used on this node: {served.message}")
        return served.backend

    def _open(self, wanted: Mapping[str, Path]) -> None:
        opened = {}
        for name, path in wanted.items():
            served = self._served.get(name)
            if served is None or not _is_current(served, path):
                served = self._try(path, self._is_known(name, path))
            opened[name] = served
        self._served = opened

    def _is_known(self, name: str, path: Path) -> bool:
        return self._known.get(name) == str(path)

    def _try(self, path: Path, known: bool) -> Served:
        try:
            backend = open_root(path, self._data_dirs, known)
            return Served(path, backend, device=path.stat().st_dev)
        except (CsiError, OSError) as error:
            log.warning("data root %s cannot be used: %s", path, error)
            return Served(path, message=str(error))


def _is_current(served: Served, path: Path) -> bool:
    """Whether the data root is what it was: nothing was mounted or unmounted there."""
    if served.backend is None or served.path != path:
        return False
    try:
        return path.stat().st_dev == served.device
    except FileNotFoundError:
        return False
