"""Reports this node as a StorageNode, and serves the clusters that its spec names."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from kube3fs_crds import (
    LEASE_SECONDS,
    ObjectMeta,
    RdmaStatus,
    StorageNode,
    lease_name,
    now,
)
from kube3fs_csi.agent.report import cluster_statuses, is_same, node_status, scratch_conditions
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.node.clusters import Clusters, Wanted
from kube3fs_csi.node.sessions import DaemonState
from kube3fs_csi.node.state import Published
from kube3fs_csi.serving.errors import AlreadyExists, CsiError

log = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0
_RENEW_SECONDS = 8.0
"""The Lease is renewed with the first report after so long: every 18 s at the latest."""
_ANSWER_SECONDS = 5.0
"""How long a report waits for data roots that were not slow before."""


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
        published: Callable[[], Sequence[Published]],
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
        self._published = published
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
            except Exception:  # the volumes of the node are served all the same
                log.exception("reporting the node met a defect")
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
        served, published = self._clusters.all(), self._published()
        reached = node_status(
            node,
            cluster_statuses(served, published),
            scratch_conditions(node, self._clusters.wanted, served, published, now()),
            self._daemon(),
            self._rdma(),
            now(),
        )
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
