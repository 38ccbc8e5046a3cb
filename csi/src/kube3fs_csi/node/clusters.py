"""The StorageClusters that this node serves, and the back end of each one's data root."""

import asyncio
import contextlib
import functools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from kube3fs_crds import ScratchPolicy
from kube3fs_csi.backends.base import Backend, DataMissing, Space
from kube3fs_csi.backends.choose import open_root
from kube3fs_csi.node.lanes import Lanes
from kube3fs_csi.node.state import write_atomically
from kube3fs_csi.serving import machine
from kube3fs_csi.serving.errors import CsiError, Precondition, Unavailable

log = logging.getLogger(__name__)

HUNG_SECONDS = 15.0
"""A data root that has not answered for so long hangs: its calls are refused until it answers."""


@dataclass(frozen=True)
class Wanted:
    """A cluster as the node is asked to serve it. Without `scratch`, it has no room for scratch volumes."""

    path: Path
    scratch: ScratchPolicy | None = None
    thin: bool = False
    """Volumes may be promised room that others were promised, too."""


@dataclass(frozen=True)
class Served:
    """A cluster's data root as it was seen last. `backend` is None while it cannot be used.

    `reason`, in CamelCase, and `message` say why it is not ready. When it is, `reason` is empty, and so is
    `message` unless there is other trouble.
    """

    path: Path
    backend: Backend | None = None
    reason: str = ""
    message: str = ""
    space: Space | None = None
    device: int = field(default=0, compare=False)
    hung: bool = False

    @property
    def ready(self) -> bool:
        """Whether volumes can be made and mounted."""
        return self.backend is not None and not self.reason


class StorageHung(Unavailable):
    """The data root has a back end, which does not answer now."""


class Clusters:
    """Clusters by NAMESPACE/NAME. What was set last is remembered on disk: a restart needs no API server.

    For one event loop, which never waits: each data root is looked at in a thread of its own, and is called
    hung while that does not end.
    """

    def __init__(self, memory: Path, data_dirs: Sequence[Path], lanes: Lanes) -> None:
        self._memory = memory
        self._data_dirs = data_dirs
        self._lanes = lanes
        self._served: dict[str, Served] = {}
        self._looks: dict[tuple[str, Path], tuple[float, asyncio.Task[None]]] = {}
        """When the look at a data root began that has not ended."""
        self._known: dict[str, str] = {}
        """Data roots that were used. They are not laid out anew: an empty one lacks its disk."""
        self.dropped: dict[str, Backend] = {}
        """Back ends of clusters that are not wanted any more, until their data roots were tidied."""
        self.was_told = False
        """Whether `wanted` is what somebody asked for, and not what was remembered."""
        with contextlib.suppress(FileNotFoundError):
            self._known = json.loads(memory.read_bytes())
        self.wanted = {name: Wanted(Path(path)) for name, path in self._known.items()}

    def set(self, wanted: Mapping[str, Wanted]) -> None:
        """Serves exactly these clusters by their data roots, as soon as they were looked at."""
        for name, served in self._served.items():
            if served.backend is not None and (name not in wanted or wanted[name].path != served.path):
                self.dropped[name] = served.backend
        self.wanted, self.was_told = dict(wanted), True
        # One that is made anew may have another name.
        self.dropped = {
            name: backend for name, backend in self.dropped.items() if not self.is_wanted(backend.root)
        }
        self._served = {name: served for name, served in self._served.items() if name in wanted}

    async def look(self, seconds: float) -> None:
        """Looks at every data root, also at those that could not be used.

        Returns when all that do not hang were looked at, after `seconds` at the latest.
        """
        for name, wanted in self.wanted.items():
            key = (name, wanted.path)
            if key not in self._looks:
                task = asyncio.create_task(self._look(name, wanted.path))
                self._looks[key] = time.monotonic(), task
                task.add_done_callback(functools.partial(self._looked, key))
        waited_for = [task for key, (_since, task) in self._looks.items() if not self._hangs(*key)]
        if waited_for:
            await asyncio.wait(waited_for, timeout=seconds)
        self._remember()

    def all(self) -> dict[str, Served]:
        """Every cluster that this node was asked to serve."""
        return {name: self._now(name, wanted) for name, wanted in self.wanted.items()}

    def backend(self, cluster: str) -> Backend:
        """The back end of `cluster`, or the reason why there is none."""
        wanted = self.wanted.get(cluster)
        if wanted is None:
            raise Precondition(
                f"this node does not serve the StorageCluster {cluster}; see its nodeSelector, "
                "and `kubectl get storagenode` for what each node serves"
            )
        served = self._now(cluster, wanted)
        if served.hung:
            raise StorageHung(f"StorageCluster {cluster} cannot be used on this node now: {served.message}")
        if served.backend is None:
            raise Precondition(f"StorageCluster {cluster} cannot be used on this node: {served.message}")
        return served.backend

    def scratch_policy(self, cluster: str) -> ScratchPolicy | None:
        """The cluster's rules for scratch volumes; None: it allows none."""
        if not self.was_told:
            raise Unavailable(
                "the node plugin has just started and does not know yet to whom StorageCluster "
                f"{cluster} allows scratch volumes; retry"
            )
        wanted = self.wanted.get(cluster)
        return wanted.scratch if wanted else None

    def _now(self, name: str, wanted: Wanted) -> Served:
        served = self._served.get(name)
        if served is None or served.path != wanted.path:
            served = Served(wanted.path, reason="NotLookedAt", message=f"{wanted.path} is being looked at")
        if self._hangs(name, wanted.path):
            message = (
                f"{wanted.path} does not answer: its disk hangs or is very slow. Look at the disk; then retry"
            )
            return replace(served, reason="StorageHung", message=message, hung=True)
        return served

    def _hangs(self, name: str, path: Path) -> bool:
        looked = self._looks.get((name, path))
        return looked is not None and time.monotonic() - looked[0] > HUNG_SECONDS

    def _looked(self, key: tuple[str, Path], _task: asyncio.Task[None]) -> None:
        self._looks.pop(key, None)

    async def _look(self, name: str, path: Path) -> None:
        before, known = self._served.get(name), self._known.get(name) == str(path)
        try:
            seen = await self._lanes.of(name, "look").run(
                f"data root {path}", lambda: _look_at(path, before, known, self._data_dirs), seconds=None
            )
        except Exception as error:
            log.exception("looking at data root %s met a defect", path)
            seen = Served(path, reason="FolderUnusable", message=f"{path} cannot be looked at: {error}")
        wanted = self.wanted.get(name)
        if wanted is None or wanted.path != path:  # since
            if seen.backend is not None and not self.is_wanted(path):  # and its folders were made meanwhile
                self.dropped.setdefault(name, seen.backend)
            return
        if seen.backend is not None:
            seen.backend.thin = wanted.thin
        if seen.reason and (before is None or before.reason != seen.reason):
            log.warning("data root %s cannot be used: %s", path, seen.message)
        self._served[name] = seen

    def tidied(self, cluster: str, backend: Backend) -> bool:
        """Forgets a data root that was dropped. False if it is wanted again meanwhile: then it must stay."""
        if self.dropped.get(cluster) is not backend:
            return False
        del self.dropped[cluster]
        self._remember()
        return True

    def is_wanted(self, root: Path) -> bool:
        """Whether a cluster, of whatever name, lies there."""
        return any(one.path == root for one in self.wanted.values())

    def is_made_for(self, root: Path) -> bool:
        """Whether a data root is a folder of its own, and not one of those that the plugin was given."""
        return root not in self._data_dirs

    def _remember(self) -> None:
        known = {name: str(backend.root) for name, backend in self.dropped.items()}
        known |= {
            name: str(wanted.path)
            for name, wanted in self.wanted.items()
            if self._now(name, wanted).backend is not None or self._known.get(name) == str(wanted.path)
        }
        if known != self._known:
            write_atomically(self._memory, json.dumps(known).encode(), sync=True)
            self._known = known


def _look_at(path: Path, before: Served | None, known: bool, data_dirs: Sequence[Path]) -> Served:
    """The data root as it is now. Blocks, maybe for ever."""
    try:
        if before is None or before.backend is None or not _is_current(before, path):
            backend = open_root(path, data_dirs, known)
        else:
            backend = before.backend
        return Served(
            path, backend, message=backend.trouble(), space=backend.space(), device=path.stat().st_dev
        )
    except DataMissing as error:
        return Served(path, reason="DataMissing", message=str(error))
    except CsiError as error:
        return Served(path, reason="FolderUnusable", message=str(error))
    except OSError as error:
        return Served(path, reason="FolderUnusable", message=_in_words(path, error))


def _is_current(served: Served, path: Path) -> bool:
    """Whether the data root is what it was: nothing was mounted or unmounted there."""
    try:
        return served.path == path and path.stat().st_dev == served.device
    except FileNotFoundError:
        return False


def _in_words(path: Path, error: OSError) -> str:
    return str(machine.refusal(f"looking at {path}", error))
