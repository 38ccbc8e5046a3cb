"""Reports this node as a StorageNode, and serves the clusters that its spec names."""

import asyncio
import contextlib
import datetime
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import kube3fs_csi
from kube3fs_crds import (
    LEASE_SECONDS,
    DaemonKernel,
    DaemonStatus,
    NodeClusterFeatures,
    NodeClusterStatus,
    ObjectMeta,
    RdmaStatus,
    StorageNode,
    StorageNodeStatus,
    lease_name,
    now,
)
from kube3fs_csi.agent.conditions import condition
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.node.clusters import Clusters, Served, Wanted
from kube3fs_csi.node.sessions import DaemonState
from kube3fs_csi.serving.errors import AlreadyExists, CsiError

log = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0
_RENEW_SECONDS = 8.0
"""The Lease is renewed with the first report after so long: every 18 s at the latest."""
_ANSWER_SECONDS = 5.0
"""How long a report waits for data roots that were not slow before."""
_SAME_SPACE = 64 << 20
"""Free space that changed by less is not worth a write."""


class NodeAgent:
    """Keeps the StorageNode `name` current, and its Lease in `namespace`, which says that it is.

    `changed` is called when the served clusters may have changed.
    """

    def __init__(
        self,
        name: str,
        namespace: str,
        objects: Objects,
        nodes: Informer[StorageNode],
        clusters: Clusters,
        daemon: Callable[[], DaemonState],
        rdma: Callable[[], RdmaStatus],
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._name = name
        self._namespace = namespace
        self._renewed = -math.inf
        self._objects = objects
        self._nodes = nodes
        self._clusters = clusters
        self._daemon = daemon
        self._rdma = rdma
        self._changed = changed
        self._look = asyncio.Event()

    def look(self) -> None:
        """Has the report made anew soon."""
        self._look.set()

    async def run(self) -> None:
        """Never returns; cancel it."""
        await self._nodes.synced.wait()
        while True:
            self._look.clear()
            try:
                await self._report()
            except (CsiError, OSError) as error:
                log.warning("cannot report the node: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._look.wait()

    async def _report(self) -> None:
        node = self._nodes.items.get(self._name)
        if node is None:
            with contextlib.suppress(AlreadyExists):
                await self._objects.create(StorageNode(metadata=ObjectMeta(name=self._name)))
            return  # the watch brings it
        if node.metadata.deletion_timestamp:
            return
        before = usable(self._clusters)
        self._clusters.set(
            {
                f"{one.namespace}/{one.name}": Wanted(
                    Path(one.path), one.scratch, thin=one.provisioning == "Thin"
                )
                for one in node.spec.clusters
            }
        )
        await self._clusters.look(_ANSWER_SECONDS)
        if usable(self._clusters) != before:
            await self._changed()
        served = cluster_statuses(self._clusters.all())
        reached = node_status(node, served, self._daemon(), self._rdma(), now())
        if not is_same(reached, node.status):
            await self._objects.apply_status(StorageNode, self._name, reached)
        await self._renew(node)

    async def _renew(self, node: StorageNode) -> None:
        """The status is what was seen now: only who reports may say that the report is current."""
        if time.monotonic() - self._renewed < _RENEW_SECONDS:
            return
        await self._objects.renew_lease(
            self._namespace, lease_name(self._name), self._name, node, LEASE_SECONDS
        )
        self._renewed = time.monotonic()


def usable(clusters: Clusters) -> set[str]:
    """The clusters whose data root can be used now."""
    return {name for name, served in clusters.all().items() if served.ready}


def cluster_statuses(clusters: Mapping[str, Served]) -> list[NodeClusterStatus]:
    """What each cluster has here. Pure."""
    return [_cluster_status(name, served) for name, served in sorted(clusters.items())]


def _cluster_status(cluster: str, served: Served) -> NodeClusterStatus:
    namespace, _, name = cluster.partition("/")
    backend, space = served.backend, served.space
    status = NodeClusterStatus(
        namespace=namespace,
        name=name,
        path=str(served.path),
        ready=served.ready,
        reason=served.reason,
        message=served.message,
    )
    if backend is None or space is None:
        return status
    return status.model_copy(
        update={
            "backend": backend.name,
            "features": NodeClusterFeatures(**backend.features._asdict()),
            "capacity_bytes": space.capacity,
            "available_bytes": space.available,
            "allocated_bytes": space.allocated,
            "file_system": backend.file_system.device,
            "reserved_bytes": space.reserved,
            "volumes": space.volumes,
        }
    )


def node_status(
    node: StorageNode,
    clusters: list[NodeClusterStatus],
    daemon: DaemonState,
    rdma: RdmaStatus,
    at: datetime.datetime,
) -> StorageNodeStatus:
    """The report, from what was seen. Pure.

    Ready is about the node plugin and usrbiod: a cluster that cannot be used takes nothing from the others.
    """
    generation, old = node.metadata.generation, node.status.conditions
    if daemon.healthy:
        ready = condition(old, "Ready", True, "Serving", f"serves {len(clusters)} clusters", generation, at)
    else:
        ready = condition(old, "Ready", False, "DaemonDown", daemon.message, generation, at)
    failed = [cluster for cluster in clusters if not cluster.ready]
    reasons = {cluster.reason for cluster in failed}
    reason = (reasons.pop() if len(reasons) == 1 else "ClustersNotReady") if failed else "AllReady"
    message = "; ".join(f"{one.namespace}/{one.name}: {one.message}" for one in failed)
    all_ready = condition(old, "ClustersReady", not failed, reason, message, generation, at)
    return StorageNodeStatus(
        observed_generation=generation,
        conditions=[ready, all_ready],
        driver_version=kube3fs_csi.__version__,
        daemon=daemon_status(daemon),
        clusters=clusters,
        rdma=rdma,
    )


def daemon_status(daemon: DaemonState) -> DaemonStatus:
    """What is known of usrbiod."""
    if daemon.hello is None:
        return DaemonStatus(version="", healthy=False, message=daemon.message)
    kernel = DaemonKernel.model_validate(daemon.hello["kernel"])
    return DaemonStatus(
        version=daemon.hello["version"], healthy=daemon.healthy, message=daemon.message, kernel=kernel
    )


def is_same(one: StorageNodeStatus, other: StorageNodeStatus) -> bool:
    """Whether a write would tell nothing new: free space that moved a little does not count."""
    return _coarse(one) == _coarse(other)


def _coarse(status: StorageNodeStatus) -> StorageNodeStatus:
    clusters = [
        cluster.model_copy(
            update={
                "available_bytes": (cluster.available_bytes or 0) // _SAME_SPACE,
                "reserved_bytes": (cluster.reserved_bytes or 0) // _SAME_SPACE,
            }
        )
        for cluster in status.clusters
    ]
    return status.model_copy(update={"clusters": clusters})
