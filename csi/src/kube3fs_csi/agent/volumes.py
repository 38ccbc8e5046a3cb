"""Carries out the StorageVolumes and StorageSnapshots of this node: make, grow, copy, delete."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from kube3fs_crds import StorageSnapshot, StorageVolume, StorageVolumeStatus, now
from kube3fs_csi.agent import status
from kube3fs_csi.backends.base import Backend, DataMissing, Kind, Progress, Snapshot, Source
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.names import FINALIZER_NODE, pods_in_words
from kube3fs_csi.node.clusters import Clusters
from kube3fs_csi.node.lanes import Lanes
from kube3fs_csi.serving.errors import CsiError, Precondition

log = logging.getLogger(__name__)

T = TypeVar("T")

_PROGRESS_SECONDS = 2.0
_MAKE_SECONDS = 60.0
"""How long an object waits for its data root before its status says so. The work goes on."""


class VolumeAgent:
    """Reconciles objects by name. The data root shows what was done already."""

    def __init__(
        self,
        objects: Objects,
        volumes: Informer[StorageVolume],
        snapshots: Informer[StorageSnapshot],
        clusters: Clusters,
        users: Callable[[str], Sequence[str]],
        changed: Callable[[], None],
        grown: Callable[[str], Awaitable[None]],
        deleted: Callable[[], None],
        lanes: Lanes,
    ) -> None:
        """`users`: the pods that have a volume. `changed` is called when room was taken or given back.

        `grown` is called with the name of a volume that has a new size, before its status says so, `deleted`
        when there is trash to empty. What may take hours has threads of its own: everything else goes on.
        """
        self._objects = objects
        self._volumes = volumes
        self._snapshots = snapshots
        self._clusters = clusters
        self._users = users
        self._changed = changed
        self._grown = grown
        self._deleted = deleted
        self._lanes = lanes

    def volume_cluster(self, name: str) -> str:
        """The cluster of a volume, whose disk it may wait for."""
        volume = self._volumes.items.get(name)
        return str(volume.spec.cluster_ref) if volume else ""

    def snapshot_cluster(self, name: str) -> str:
        """The same for a snapshot."""
        snapshot = self._snapshots.items.get(name)
        return str(snapshot.spec.cluster_ref) if snapshot else ""

    def was_used(self, name: str) -> None:
        """Says that a pod had the volume: what it uses is to be looked at again."""
        volume = self._volumes.items.get(name)
        if volume is not None:
            with contextlib.suppress(CsiError):
                self._clusters.backend(str(volume.spec.cluster_ref)).measure_soon(name)

    async def volume(self, name: str) -> None:
        """Makes the volume what its spec says."""
        volume = self._volumes.items.get(name)
        if volume is None:
            return
        try:
            if volume.metadata.deletion_timestamp:
                await self._delete_volume(volume)
                return
            reached = await self._make(volume)
        except (CsiError, OSError) as error:
            await self._write(volume, status.volume_failed(volume, error, self._users(name), now()))
            raise
        await self._write(volume, reached)

    async def snapshot(self, name: str) -> None:
        """Makes the snapshot what its spec says."""
        snapshot = self._snapshots.items.get(name)
        if snapshot is None:
            return
        try:
            if snapshot.metadata.deletion_timestamp:
                await self._delete_snapshot(snapshot)
                return
            backend = self._clusters.backend(str(snapshot.spec.cluster_ref))
            taken = await self._take(backend, snapshot)
        except (CsiError, OSError) as error:
            failed = status.snapshot_failed(snapshot, error, now())
            if failed != snapshot.status:
                await self._objects.apply_status(StorageSnapshot, name, failed)
            raise
        reached = status.snapshot_ready(snapshot, taken, now())
        if reached != snapshot.status:
            await self._objects.apply_status(StorageSnapshot, name, reached)

    async def _make(self, volume: StorageVolume) -> StorageVolumeStatus:
        spec, name = volume.spec, volume.metadata.name
        backend = self._clusters.backend(str(spec.cluster_ref))
        source, progress = _source(volume), self._progress(volume)
        made = volume.status.capacity_bytes is not None
        if made:
            await self._do(volume, lambda: _check_there(backend, "volume", name))
        create = partial(backend.create, name, spec.capacity_bytes, source, progress)
        await self._do(volume, create, copies=source is not None and not made)
        if volume.status.capacity_bytes != spec.capacity_bytes:
            self._changed()
            await self._grown(name)
        return status.volume_ready(volume, backend, spec.capacity_bytes, self._users(name), now())

    async def _take(self, backend: Backend, snapshot: StorageSnapshot) -> Snapshot:
        made, name = snapshot.status.ready_to_use, snapshot.metadata.name
        if made:
            await self._do(snapshot, lambda: _check_there(backend, "snapshot", name))
        take = partial(backend.snapshot, snapshot.spec.volume_name, name, _ignore)
        return await self._do(snapshot, take, copies=not made)

    async def _delete_volume(self, volume: StorageVolume) -> None:
        name = volume.metadata.name
        if users := self._users(name):
            raise Precondition(
                f"volume {name} is in use by {pods_in_words(users)} on this node; its data is deleted when "
                "no pod uses it any more"
            )
        await self._delete(volume, lambda backend: backend.delete("volume", name))

    async def _delete_snapshot(self, snapshot: StorageSnapshot) -> None:
        await self._delete(snapshot, lambda backend: backend.delete("snapshot", snapshot.metadata.name))

    async def _delete(self, found: StorageVolume | StorageSnapshot, work: Callable[[Backend], None]) -> None:
        if FINALIZER_NODE not in found.metadata.finalizers:
            return
        backend = self._clusters.backend(str(found.spec.cluster_ref))
        await self._do(found, lambda: work(backend))
        await self._objects.remove_finalizer(found, FINALIZER_NODE)
        self._changed()
        self._deleted()

    async def _write(self, volume: StorageVolume, reached: StorageVolumeStatus) -> None:
        if reached != volume.status:
            await self._objects.apply_status(StorageVolume, volume.metadata.name, reached)

    def _progress(self, volume: StorageVolume) -> Progress:
        """Tells the object how far a copy has come, from the thread that copies."""
        loop, last = asyncio.get_running_loop(), time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last < _PROGRESS_SECONDS or done >= total:
                return
            last = time.monotonic()
            writing = self._write(volume, status.volume_copying(volume, done, total, now()))
            try:
                asyncio.run_coroutine_threadsafe(writing, loop).result(_PROGRESS_SECONDS)
            except (CsiError, TimeoutError) as error:
                log.info("progress of %s is not written: %s", volume.metadata.name, error)

        return tell

    async def _do(
        self, wanted: StorageVolume | StorageSnapshot, work: Callable[[], T], *, copies: bool = False
    ) -> T:
        lane = self._lanes.of(str(wanted.spec.cluster_ref), "copy" if copies else "make")
        what = f"{type(wanted).__name__} {wanted.metadata.name}"
        return await lane.run(what, work, None if copies else _MAKE_SECONDS)


def _check_there(backend: Backend, kind: Kind, name: str) -> None:
    if not backend.path(kind, name).exists():
        raise DataMissing(
            f"the data of {kind} {name} is not in {backend.root} any more: mount its disk again, "
            f"or delete the {kind}"
        )


def _source(volume: StorageVolume) -> Source | None:
    source = volume.spec.source
    if source is None:
        return None
    return Source("snapshot", source.snapshot) if source.snapshot else Source("volume", source.volume or "")


def _ignore(_done: int, _total: int) -> None:
    """A snapshot has no progress in its status."""
