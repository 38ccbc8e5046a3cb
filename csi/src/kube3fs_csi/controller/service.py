"""Volumes and snapshots as objects: the controller writes what is wanted, the node reports what it did."""

import asyncio
import logging
from collections.abc import Iterable
from typing import TypeVar

from kube3fs_crds import (
    Condition,
    ObjectMeta,
    StorageCluster,
    StorageNode,
    StorageSnapshot,
    StorageSnapshotSpec,
    StorageSnapshotStatus,
    StorageVolume,
    StorageVolumeSpec,
    VolumeSource,
)
from kube3fs_csi.controller.placement import choose, room, share_of, shares
from kube3fs_csi.controller.requests import Wanted
from kube3fs_csi.controller.wanted import is_pending, snapshot_is_wanted, volume_is_wanted
from kube3fs_csi.kube.api import Api
from kube3fs_csi.kube.claims import PersistentVolumes, keeps_its_volume, node_exists
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.names import FINALIZER_NODE, PENDING_FOR, is_object_name, pods_in_words
from kube3fs_csi.serving.errors import (
    BY_CODE,
    AlreadyExists,
    Busy,
    CsiError,
    DeadlineNear,
    Exhausted,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Precondition,
    Unavailable,
)

log = logging.getLogger(__name__)

R = TypeVar("R", StorageVolume, StorageSnapshot)

_POLL_SECONDS = 0.1
_TAKE_BACK = {Exhausted, OutOfRange, NotFound, InvalidArgument}
"""Errors of a new volume or snapshot after which it is taken back, so that another node may be tried."""
_ASKED_AGAIN = {"CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"}
"""After these codes the sidecars ask again until it is done, and then delete what nobody wants any more.
After any other they may forget it, and delete nothing (isFinalError of external-provisioner, isCSIFinalError
of external-snapshotter)."""


class VolumeService:
    """What the CSI calls mean, over caches of the four kinds."""

    def __init__(
        self,
        api: Api,
        objects: Objects,
        volumes: Informer[StorageVolume],
        snapshots: Informer[StorageSnapshot],
        nodes: Informer[StorageNode],
        clusters: Informer[StorageCluster],
    ) -> None:
        self._api = api
        self._persistent_volumes = PersistentVolumes(api)
        self._objects = objects
        self.volumes = volumes
        self.snapshots = snapshots
        self.nodes = nodes
        self._clusters = clusters

    async def create_volume(self, wanted: Wanted, seconds: float) -> StorageVolume:
        """Makes the volume, or finds it as asked."""
        found = await self._objects.get(StorageVolume, wanted.name)
        if found is None or is_pending(found):
            await self._check_claim(wanted, found)
        if found is None:
            found = await self._new_volume(wanted)
        self._check_same(found, wanted)
        try:
            made = await self._wait_ready(found, wanted.required, seconds)
        except CsiError as error:
            raise await self._unmade(found, error) from error
        return await self._handed_out(made)

    async def delete_volume(self, name: str, seconds: float) -> None:
        """Returns when the volume is gone."""
        if not is_object_name(name):
            return
        found = await self._objects.get(StorageVolume, name)
        if found is not None and not found.metadata.deletion_timestamp:
            await self._check_unreferred(name)
            # What a node that is no more holds can only be given up.
            if await node_exists(self._api, found.spec.node_name):
                await self._check_unused(found, seconds)
        await self._objects.delete(StorageVolume, name)
        await self._wait_gone(StorageVolume, self.volumes, name, seconds)

    def volume(self, name: str) -> StorageVolume:
        """A volume that is not being deleted."""
        found = self.volumes.items.get(name)
        if found is None or found.metadata.deletion_timestamp:
            raise NotFound(f"there is no volume {name}")
        return found

    def snapshot(self, name: str) -> StorageSnapshot:
        """A snapshot that is not being deleted."""
        found = self.snapshots.items.get(name)
        if found is None or found.metadata.deletion_timestamp:
            raise NotFound(f"there is no snapshot {name}")
        return found

    async def expand(self, name: str, required: int, limit: int, seconds: float) -> int:
        """Has the volume grow to at least `required` bytes; its size then."""
        found = await self._objects.get(StorageVolume, name) if is_object_name(name) else None
        if found is None:
            raise NotFound(f"there is no volume {name}")
        have = found.spec.capacity_bytes
        if limit and have > limit:
            raise OutOfRange(f"volume {name} has {have} bytes and cannot shrink to {limit}; ask for more")
        if required > have:
            self._check_growth(found, required - (found.status.capacity_bytes or 0))
            found = await self._objects.merge(StorageVolume, name, {"spec": {"capacityBytes": required}})
        ready = await self._wait_ready(found, max(required, have), seconds)
        return ready.status.capacity_bytes or 0

    async def create_snapshot(self, name: str, volume: str, content: str, seconds: float) -> StorageSnapshot:
        """Takes a snapshot, or finds it. `content`: the VolumeSnapshotContent that it is for, or ''."""
        found = await self._objects.get(StorageSnapshot, name)
        if (found is None or is_pending(found)) and not await snapshot_is_wanted(self._api, content):
            await self._objects.delete(StorageSnapshot, name)
            raise NotFound(f"VolumeSnapshotContent {content}, for which {name} was to be taken, is gone")
        if found is not None and found.spec.volume_name != volume:
            raise AlreadyExists(
                f"snapshot {name} exists, of volume {found.spec.volume_name}; give this one another name"
            )
        if found is None:
            source = await self._objects.get(StorageVolume, volume) if is_object_name(volume) else None
            if source is None:
                raise NotFound(f"there is no volume {volume} to take a snapshot of")
            spec = StorageSnapshotSpec(
                node_name=source.spec.node_name, volume_name=volume, cluster_ref=source.spec.cluster_ref
            )
            found = StorageSnapshot(metadata=_metadata(name, content), spec=spec)
            await self._objects.create(found)
        try:
            taken = await self._wait_snapshot(name, seconds)
        except CsiError as error:
            raise await self._unmade(found, error) from error
        return await self._handed_out(taken)

    async def delete_snapshot(self, name: str, seconds: float) -> None:
        """Returns when the snapshot is gone."""
        if is_object_name(name):
            await self._objects.delete(StorageSnapshot, name)
            await self._wait_gone(StorageSnapshot, self.snapshots, name, seconds)

    def rooms(self, cluster_key: tuple[str, str] | None, nodes: Iterable[str]) -> list[int]:
        """Bytes that a new volume may have, for each share of the cluster (None: any) on `nodes` (or all)."""
        wanted = set(nodes)
        return [
            room(share)
            for node in self.nodes.items.values()
            if not wanted or node.metadata.name in wanted
            for share in shares(node)
            if cluster_key is None or (share.namespace, share.name) == cluster_key
        ]

    async def _new_volume(self, wanted: Wanted) -> StorageVolume:
        self._check_cluster(wanted)
        nodes = self._nodes_of_source(wanted) if wanted.source else wanted.nodes
        node = choose(self.nodes.items.values(), wanted.cluster, wanted.required, nodes)
        spec = StorageVolumeSpec(
            node_name=node,
            cluster_ref=wanted.cluster,
            capacity_bytes=wanted.required,
            source=wanted.source,
        )
        await self._objects.create(StorageVolume(metadata=_metadata(wanted.name, wanted.claim), spec=spec))
        found = await self._objects.get(StorageVolume, wanted.name)
        if found is None:
            raise Busy(wanted.name)
        return found

    async def _check_unreferred(self, name: str) -> None:
        """Refuses to delete what a PersistentVolume other than the one that is being deleted refers to."""
        found = await self._persistent_volumes.of(name)
        alone = len(found) == 1
        keepers = [one["metadata"]["name"] for one in found if keeps_its_volume(one, alone=alone)]
        if keepers:
            raise Precondition(
                f"PersistentVolume {', '.join(sorted(keepers)[:5])} refers to volume {name}, which is kept "
                "with its data; a PersistentVolume that shares a volume must have the reclaim policy Retain"
            )

    async def _check_unused(self, found: StorageVolume, seconds: float) -> None:
        """Refuses to delete what a pod has mounted, as the volume's node says when it is asked."""
        name, node = found.metadata.name, found.spec.node_name
        if found.spec.delete_requested:  # by a call that gave up: the answer to that may be old by now
            await self._objects.merge(StorageVolume, name, {"spec": {"deleteRequested": None}})
        asked = await self._objects.merge(StorageVolume, name, {"spec": {"deleteRequested": True}})
        generation = asked.metadata.generation or 0

        def answered(now: StorageVolume | None) -> bool:
            return now is None or (now.status.observed_generation or 0) >= generation

        try:
            now = await self.volumes.wait_for(name, answered, seconds)
        except TimeoutError as error:
            raise DeadlineNear(
                f"node {node} has not said yet whether a pod uses volume {name}; retry"
            ) from error
        if now is not None and now.status.used_by:
            await self._objects.merge(StorageVolume, name, {"spec": {"deleteRequested": None}})
            raise Precondition(
                f"volume {name} is in use by {pods_in_words(now.status.used_by)} on node {node} and is not "
                "deleted. To keep its data, set the reclaim policy of its PersistentVolume to Retain before "
                "the pod ends: asked again after that, it would be deleted"
            )

    async def _check_claim(self, wanted: Wanted, found: StorageVolume | None) -> None:
        """Ends the making of a volume for a claim that is gone; nothing is left of it."""
        if await volume_is_wanted(self._api, wanted.name, wanted.claim):
            return
        if found is not None:
            await self._objects.delete(StorageVolume, wanted.name)
        raise NotFound(f"claim {wanted.claim}, for which volume {wanted.name} was to be made, is gone")

    async def _unmade(self, found: StorageVolume | StorageSnapshot, error: CsiError) -> CsiError:
        """The answer for what was not made now. A code that ends it leaves nothing behind."""
        if _was_made(found) and not is_pending(found):
            return error  # somebody has it
        if type(error) in _TAKE_BACK:
            await self._objects.delete(type(found), found.metadata.name)
        elif error.code.name not in _ASKED_AGAIN:
            return Unavailable(f"{error}; this is tried again until it succeeds")
        return error

    async def _handed_out(self, made: R) -> R:
        """From now on somebody may store something in it."""
        if not is_pending(made):
            return made
        known = {"metadata": {"annotations": {PENDING_FOR: None}}}
        now = await self._objects.merge(type(made), made.metadata.name, known)
        if now.metadata.deletion_timestamp:
            raise Busy(f"deleting {made.metadata.name}")
        return made

    def _check_cluster(self, wanted: Wanted) -> None:
        cluster = self._clusters.items.get(str(wanted.cluster))
        if cluster is None:
            raise InvalidArgument(
                f"there is no StorageCluster {wanted.cluster}; create it, or name another in the StorageClass"
            )
        ready = condition(cluster.status.conditions, "Ready")
        if ready is None or ready.status != "True":
            why = ready.message if ready else "the operator has not looked at it yet"
            raise Unavailable(f"StorageCluster {wanted.cluster} is not ready: {why}")

    def _nodes_of_source(self, wanted: Wanted) -> tuple[str, ...]:
        """A copy is made on the node that has the source."""
        source = self._source_spec(wanted.source or VolumeSource())
        if source.cluster_ref != wanted.cluster:
            raise InvalidArgument(
                f"the source lies in StorageCluster {source.cluster_ref}; use a StorageClass of that cluster"
            )
        if wanted.nodes and source.node_name not in wanted.nodes:
            raise Exhausted(
                f"the source lies on node {source.node_name}, where the pod cannot run; let the pod run there"
            )
        return (source.node_name,)

    def _source_spec(self, source: VolumeSource) -> StorageVolumeSpec | StorageSnapshotSpec:
        if source.snapshot:
            return self.snapshot(source.snapshot).spec
        return self.volume(source.volume or "").spec

    def _check_growth(self, volume: StorageVolume, more: int) -> None:
        node = self.nodes.items.get(volume.spec.node_name)
        share = share_of(node, volume.spec.cluster_ref) if node else None
        if share is not None and room(share) < more:
            raise OutOfRange(
                f"node {volume.spec.node_name} has {room(share)} bytes left, {more} more were asked for; "
                "ask for less"
            )

    def _check_same(self, found: StorageVolume, wanted: Wanted) -> None:
        if found.metadata.deletion_timestamp:
            raise Busy(f"deleting volume {wanted.name}")
        have = found.spec
        fits = have.capacity_bytes >= wanted.required and not (0 < wanted.limit < have.capacity_bytes)
        if have.cluster_ref != wanted.cluster or have.source != wanted.source or not fits:
            raise AlreadyExists(
                f"volume {wanted.name} exists with another size, cluster or source; choose another name"
            )

    async def _wait_ready(self, volume: StorageVolume, size: int, seconds: float) -> StorageVolume:
        name, generation = volume.metadata.name, volume.metadata.generation or 0

        def settled(now: StorageVolume | None) -> bool:
            if now is None or (now.metadata.generation or 0) < generation:
                return False  # the cache is behind
            looked = (now.status.observed_generation or 0) >= generation
            return looked and (bool(now.status.error) or is_ready(now, size))

        try:
            found = await self.volumes.wait_for(name, settled, seconds)
        except TimeoutError as error:
            now = self.volumes.items.get(name)
            raise DeadlineNear(_waiting(now or volume)) from error
        if found is None:
            raise Busy(name)
        if found.status.error:
            raise _error_of(found)
        return found

    async def _wait_snapshot(self, name: str, seconds: float) -> StorageSnapshot:
        def settled(now: StorageSnapshot | None) -> bool:
            return now is not None and (now.status.ready_to_use or bool(now.status.error))

        try:
            found = await self.snapshots.wait_for(name, settled, seconds)
        except TimeoutError as error:
            raise DeadlineNear(f"snapshot {name} is still being taken; retry") from error
        if found is None:
            raise Busy(name)
        if found.status.error:
            raise _error_of(found)
        return found

    async def _wait_gone(self, kind: type[R], informer: Informer[R], name: str, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                last = await informer.wait_for(name, lambda now: now is None or _refused(now), seconds)
                if last is not None:
                    raise _error_of(last)
                # The cache may have been behind, and no event says when it is not.
                while await self._objects.get(kind, name):  # noqa: ASYNC110
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError as error:
            raise DeadlineNear(f"{name} is still being deleted: its node has not done it yet") from error


def is_ready(volume: StorageVolume, size: int) -> bool:
    """Whether the node has made the volume, with at least `size` bytes."""
    ready = condition(volume.status.conditions, "Ready")
    return ready is not None and ready.status == "True" and (volume.status.capacity_bytes or 0) >= size


def _refused(found: StorageVolume | StorageSnapshot) -> bool:
    """Whether the node has tried to delete it and could not."""
    ready = condition(found.status.conditions, "Ready")
    return ready is not None and ready.reason == "NotDeleted"


def _error_of(found: StorageVolume | StorageSnapshot) -> CsiError:
    error = found.status.error
    return BY_CODE.get(error.code, CsiError)(error.message) if error else Busy(found.metadata.name)


def condition(conditions: Iterable[Condition], kind: str) -> Condition | None:
    """The condition of a type."""
    return next((found for found in conditions if found.type == kind), None)


def _was_made(found: StorageVolume | StorageSnapshot) -> bool:
    status = found.status
    return (
        status.ready_to_use
        if isinstance(status, StorageSnapshotStatus)
        else status.capacity_bytes is not None
    )


def _metadata(name: str, whom: str) -> ObjectMeta:
    return ObjectMeta(name=name, finalizers=[FINALIZER_NODE], annotations={PENDING_FOR: whom})


def _waiting(volume: StorageVolume) -> str:
    progress = volume.status.progress
    done = f", {progress.done_bytes} of {progress.total_bytes} bytes copied" if progress else ""
    return f"node {volume.spec.node_name} is still making volume {volume.metadata.name}{done}; retry"
