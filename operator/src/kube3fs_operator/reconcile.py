"""One reconcile per kind: look, compute what should be, write the difference.

Every step may be repeated and the process may die between any two of them. A wrong or broken object costs
only its own reconcile.
"""

import datetime
import logging
from collections.abc import Callable
from typing import NamedTuple

from kubernetes.aio.client.exceptions import ApiException

from kube3fs_crds import Condition, StorageCluster, StorageClusterStatus, StorageNode, lease_name, now
from kube3fs_operator import claims, gates, metrics, render
from kube3fs_operator.api import Api, is_missing, sentence
from kube3fs_operator.conditions import Draft, settle
from kube3fs_operator.health import SILENT, condition, is_up
from kube3fs_operator.placement import share
from kube3fs_operator.status import Attempt, conflict, status
from kube3fs_operator.views import ClusterKey, World

log = logging.getLogger(__name__)

DELETION_POLL = 20.0
"""Seconds between looks at PersistentVolumes, which are not watched, while a cluster is being deleted."""


class NodeKey(NamedTuple):
    """A node and its StorageNode, by name."""

    name: str


Key = ClusterKey | NodeKey


class Reconciler:
    """Brings the API server's objects to what the world asks for."""

    def __init__(
        self,
        world: World,
        api: Api,
        clock: Callable[[], datetime.datetime] = now,
        last_spoke: Callable[[str], str | None] = lambda _node: None,
    ) -> None:
        """`last_spoke`: for the node plugins that are silent, see `silence.Silence.renewed`."""
        self._world = world
        self._api = api
        self._clock = clock
        self._last_spoke = last_spoke
        self._written: dict[ClusterKey, int] = {}  # resourceVersion of our last status
        self._snapshot_api_missing = False

    async def reconcile(self, key: Key) -> float | None:
        """One pass over one object. Returns the seconds after which to look again, if it matters."""
        if isinstance(key, NodeKey):
            return await self._node(key.name)
        cluster = self._world.cluster(key)
        if cluster is None:
            await self._gone(key)
            return None
        if int(cluster.metadata.resource_version or 0) < self._written.get(key, 0):
            # What we see is older than what we wrote. The watch brings the newer one, and us back here.
            return None
        if cluster.metadata.deletion_timestamp is not None:
            return await self._delete(cluster)
        return await self._cluster(cluster)

    def look_for_snapshot_api_again(self) -> None:
        """Called now and then: somebody may have installed the snapshot CRDs."""
        self._snapshot_api_missing = False

    # ---- StorageCluster ----

    async def _cluster(self, cluster: StorageCluster) -> float | None:
        if render.FINALIZER not in cluster.metadata.finalizers:
            await self._api.apply_finalizer(cluster)
        refused = conflict(cluster, self._world) or not render.may_have_class(cluster, self._world)
        error = None if refused else await self._apply_classes(cluster)
        await self._write_status(cluster, Attempt(apply_error=sentence(error) if error else ""))
        if error:
            raise error
        return claims.next_look(cluster, self._world, self._clock())

    async def _apply_classes(self, cluster: StorageCluster) -> ApiException | None:
        for body in render.classes(cluster, self._world):
            key = render.key_of(body)
            seen = self._world.classes.get(key, ())
            if any(render.covers(one, body) for one in seen):
                continue
            if key.kind == "VolumeSnapshotClass" and self._snapshot_api_missing:
                continue
            try:
                await self._api.apply_class(body)
            except ApiException as error:
                if key.kind == "VolumeSnapshotClass" and is_missing(error):
                    self._snapshot_api_missing = True
                    continue
                return error
        return None

    async def _delete(self, cluster: StorageCluster) -> float | None:
        """Classes first, so that nothing new comes; then what is stored; then the object itself."""
        if render.FINALIZER not in cluster.metadata.finalizers:
            return None
        key = ClusterKey.of(cluster)
        await self._delete_classes(key)
        held = self._world.of_cluster(key)
        volumes = [view.name for view in held if view.kind == "StorageVolume"]
        unclaimed = await self._api.unclaimed(volumes) if volumes else frozenset()
        for view in held:
            if gates.may_delete_leftover(cluster, view, unclaimed):
                await self._api.delete_volume(view)
        await self._write_status(cluster, Attempt(unclaimed=unclaimed))
        if not held and gates.may_release_cluster(cluster, await self._api.stored()):
            await self._api.release(cluster)
            return None
        return DELETION_POLL

    async def _gone(self, key: ClusterKey) -> None:
        """The object is no more, perhaps because somebody took our finalizer away: its classes go too."""
        await self._delete_classes(key)
        self._written.pop(key, None)
        for gauge in (
            metrics.CLUSTERS_READY,
            metrics.CLUSTER_BYTES,
            metrics.CLUSTER_NODES,
            metrics.CLUSTER_UNCLAIMED,
        ):
            gauge.remove_by_labels({"namespace": key.namespace, "name": key.name})

    async def _delete_classes(self, key: ClusterKey) -> None:
        for class_key, store in list(self._world.classes.items()):
            for body in list(store):
                if render.owner(body) == key:
                    await self._api.delete_class(class_key, body["metadata"]["uid"])

    async def _write_status(self, cluster: StorageCluster, attempt: Attempt) -> None:
        new = status(cluster, self._world, attempt, self._clock())
        _publish(ClusterKey.of(cluster), new)
        late = claims.overdue(cluster, self._world, self._clock())
        for what, kind in (("volumes", "StorageVolume"), ("snapshots", "StorageSnapshot")):
            unclaimed = sum(view.kind == kind for view in late)
            metrics.CLUSTER_UNCLAIMED.labels(*ClusterKey.of(cluster), what).set(unclaimed)
        if new == cluster.status:
            return
        self._written[ClusterKey.of(cluster)] = await self._api.apply_status(cluster, new)
        before, after = _ready(cluster.status), _ready(new)
        if after and (before is None or (before.status, before.reason) != (after.status, after.reason)):
            kind = (
                "Normal" if after.status == "True" or after.reason in ("Deleting", "NotMade") else "Warning"
            )
            await self._api.event(cluster, kind, after.reason, after.message or after.reason)

    # ---- StorageNode ----

    async def _node(self, name: str) -> float | None:
        node, storage_node = self._world.node(name), self._world.storage_node(name)
        if node is None:
            return await self._node_gone(name)
        if storage_node is None:
            return None  # the node plugin makes it when it comes up
        wanted = share(name, self._world).clusters
        if storage_node.spec.clusters != wanted:
            await self._api.apply_node(name, wanted)
        await self._doubt(storage_node)
        ready = condition(storage_node, "Ready")
        if node.tainted and is_up(ready):
            await self._api.remove_taint(name)
        return None

    async def _doubt(self, node: StorageNode) -> None:
        """Says of a node whose plugin is silent that nobody knows how it fares."""
        name, ready = node.metadata.name, condition(node, "Ready")
        last_spoke = self._last_spoke(name)
        if last_spoke is None or ready is None or ready.reason == SILENT:
            return
        if await self._api.node_renewed(name) != last_spoke:
            return  # it speaks again
        draft = Draft(
            "Ready",
            "Unknown",
            SILENT,
            f"the node plugin does not renew its Lease {lease_name(name)} any more, and what is said here "
            "was true then: see kubectl get pods -o wide -A -l app.kubernetes.io/component=csi-node",
        )
        generation = node.metadata.generation or 0
        await self._api.mark_silent(
            node, settle([draft], node.status.conditions, generation, self._clock())[0]
        )

    async def _node_gone(self, name: str) -> float | None:
        """What lay on a node that is no more can only be given up, and only where the user has deleted it."""
        held, storage_node = self._world.of_node(name), self._world.storage_node(name)
        if not held and storage_node is None:
            return None
        exists = await self._api.node_exists(name)
        for view in held:
            if gates.may_give_up(view, node_exists=exists):
                log.warning("%s %s: node %s is no more, its data is given up", view.kind, view.name, name)
                await self._api.give_up(view)
        if storage_node is not None and gates.may_forget_node(held, node_exists=exists):
            await self._api.delete_node(storage_node)
        return None


def _ready(seen: StorageClusterStatus) -> Condition | None:
    return next((c for c in seen.conditions if c.type == "Ready"), None)


def _publish(key: ClusterKey, seen: StorageClusterStatus) -> None:
    """The status as metrics, for dashboards and alerts."""
    ready = _ready(seen)
    metrics.CLUSTERS_READY.labels(*key).set(ready is not None and ready.status == "True")
    for what, number in (
        ("capacity", seen.capacity_bytes),
        ("available", seen.available_bytes),
        ("unreserved", seen.unreserved_bytes),
        ("allocated", seen.allocated_bytes),
        ("scratch", seen.scratch_bytes),
    ):
        metrics.CLUSTER_BYTES.labels(*key, what).set(number or 0)
    if seen.nodes:
        metrics.CLUSTER_NODES.labels(*key, "total").set(seen.nodes.total)
        metrics.CLUSTER_NODES.labels(*key, "ready").set(seen.nodes.ready)
