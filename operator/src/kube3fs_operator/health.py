"""How a cluster fares on each of its nodes. Pure.

Every problem has a reason for programs and a sentence for people, which says what to do.
"""

from dataclasses import dataclass

from kube3fs_crds import MAX_CLUSTERS, Condition, NodeClusterStatus, StorageCluster, StorageNode
from kube3fs_operator.placement import concerned, embedded, is_selected, share
from kube3fs_operator.views import ClusterKey, World

FULL_BELOW = 0.05
"""A file system with less than this share free counts as full."""


@dataclass(frozen=True)
class NodeHealth:
    """One node of one cluster."""

    name: str
    selected: bool
    volumes: int
    reason: str
    """Serving, or what is wrong, in CamelCase."""
    message: str
    figures: NodeClusterStatus | None
    """Capacity and free space, when the node can serve."""

    @property
    def ready(self) -> bool:
        """Volumes can be made and mounted there."""
        return self.reason == "Serving"

    @property
    def full(self) -> bool:
        """Little or no space is left."""
        seen = self.figures
        if seen is None or not seen.capacity_bytes or seen.available_bytes is None:
            return False
        return seen.available_bytes < seen.capacity_bytes * FULL_BELOW


SILENT = "NodePluginSilent"
"""Reason of the condition Ready of a StorageNode whose plugin says nothing any more."""
WAITING = ("WaitingForNode",)
"""Reasons that go away by themselves."""


def examine(cluster: StorageCluster, world: World) -> list[NodeHealth]:
    """Every node that the cluster is concerned with, by name."""
    return [_examine_node(cluster, name, world) for name in concerned(cluster, world)]


def _examine_node(cluster: StorageCluster, name: str, world: World) -> NodeHealth:
    key = ClusterKey.of(cluster)
    volumes = sum(view.cluster == key for view in world.of_node(name))
    figures = _entry(world.storage_node(name), key)
    reason, message = _problem(cluster, name, figures, world) or ("Serving", "")
    return NodeHealth(
        name=name,
        selected=is_selected(cluster, name, world),
        volumes=volumes,
        reason=reason,
        message=message,
        figures=figures if reason == "Serving" else None,
    )


def _problem(
    cluster: StorageCluster, name: str, seen: NodeClusterStatus | None, world: World
) -> tuple[str, str] | None:
    """The first thing that keeps the node from serving: reason and sentence. None when it serves."""
    key, node, storage_node = ClusterKey.of(cluster), world.node(name), world.storage_node(name)
    if node is None:
        return "NodeGone", (
            f"node {name} is no longer part of Kubernetes but holds volumes: join it again under this name, "
            "or delete the claims of its volumes, whose data is then given up"
        )
    if not node.ready:
        return "NodeNotReady", f"node {name} is not ready: see kubectl describe node {name}"
    served = share(name, world)
    rival = served.refused.get(key)
    if rival is not None:
        return "PathConflict", (
            f"node {name}: folder {embedded(cluster).path} overlaps with that of cluster {rival}: "
            "make this cluster anew with another path"
        )
    if key in served.crowded_out:
        return "TooManyClusters", (
            f"node {name} serves {MAX_CLUSTERS} clusters already, which is the most: delete some, choose "
            "other nodes by nodeSelector, or limit how many a namespace may have by a ResourceQuota on "
            "count/storageclusters.kube3fs.io"
        )
    if storage_node is None or not storage_node.status.conditions:
        return "PluginMissing", (
            f"node {name}: the node plugin has not reported: see kubectl get pods -o wide "
            "-l app.kubernetes.io/component=csi-node --all-namespaces"
        )
    ready = condition(storage_node, "Ready")
    if not is_up(ready):
        if ready is not None and ready.reason == SILENT:
            return SILENT, f"node {name}: {ready.message}"
        said = ready.message if ready else "it has no condition Ready"
        return "PluginNotReady", f"node {name}: the node plugin is not ready: {said}"
    if seen is None:
        return "WaitingForNode", f"node {name} has not taken up the cluster yet"
    if not seen.ready:
        return "FolderNotReady", f"node {name}: {seen.message or 'the folder cannot be used'}"
    return None


def _entry(storage_node: StorageNode | None, key: ClusterKey) -> NodeClusterStatus | None:
    if storage_node is None:
        return None
    return next((c for c in storage_node.status.clusters if (c.namespace, c.name) == key), None)


def is_up(ready: Condition | None) -> bool:
    """Whether a node plugin works. An older one says so only when all of its clusters do."""
    return ready is not None and (ready.status == "True" or ready.reason == "ClusterNotReady")


def condition(storage_node: StorageNode, kind: str) -> Condition | None:
    """The condition of that type, if the node plugin has written one."""
    return next((c for c in storage_node.status.conditions if c.type == kind), None)
