"""Which cluster is served by which node. Pure: no I/O, no clock.

A node serves a cluster when the cluster's selector chooses it, and also as long as it holds volumes of it:
removing a node from the selector never takes away what is stored there.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kube3fs_crds import MAX_CLUSTERS, EmbeddedEngine, NodeCluster, StorageCluster
from kube3fs_operator.views import ClusterKey, World


@dataclass(frozen=True)
class Share:
    """What one node should serve."""

    clusters: list[NodeCluster]
    """In order of namespace and name."""
    refused: dict[ClusterKey, ClusterKey]
    """Clusters left out because their folder overlaps with that of another one, which is the value."""
    crowded_out: frozenset[ClusterKey]
    """Clusters left out because a StorageNode can name MAX_CLUSTERS and no more."""


def embedded(cluster: StorageCluster) -> EmbeddedEngine:
    """The engine block. The API server has checked that there is exactly one."""
    engine = cluster.spec.engine.embedded
    if engine is None:
        raise ValueError(f"StorageCluster {ClusterKey.of(cluster)} has no engine that this operator knows")
    return engine


def selected(cluster: StorageCluster, world: World) -> list[str]:
    """Names of the nodes on which new volumes may be made.

    With an empty selector these are the nodes whose plugin has reported; else those with all the labels, also
    when their plugin is missing, so that the missing plugin is reported. None for a cluster being deleted.
    """
    return sorted(name for name in world.nodes if is_selected(cluster, name, world))


def is_selected(cluster: StorageCluster, node: str, world: World) -> bool:
    """Whether new volumes of the cluster may be made on the node."""
    if cluster.metadata.deletion_timestamp is not None:
        return False
    view = world.node(node)
    if view is None:
        return False
    selector = embedded(cluster).node_selector
    if not selector:
        return world.storage_node(node) is not None
    return all(view.labels.get(key) == value for key, value in selector.items())


def holds(cluster: ClusterKey, node: str, world: World) -> bool:
    """Whether volumes or snapshots of the cluster lie on the node."""
    return any(view.cluster == cluster for view in world.of_node(node))


def concerned(cluster: StorageCluster, world: World) -> list[str]:
    """Names of the nodes that the cluster's status speaks of: chosen now, or holding volumes."""
    holding = {view.node for view in world.of_cluster(ClusterKey.of(cluster))}
    return sorted(holding | set(selected(cluster, world)))


def share(node: str, world: World) -> Share:
    """What the node should serve. Of overlapping folders the one with volumes wins, then the older.

    If there are too many clusters, those with volumes stay, and of the others each namespace gets its first
    one before any gets its second.
    """
    taken: dict[str, ClusterKey] = {}
    wanted: list[NodeCluster] = []
    refused: dict[ClusterKey, ClusterKey] = {}
    ranks: dict[ClusterKey, tuple[bool, int]] = {}
    of_namespace: Counter[str] = Counter()
    for cluster in _claims(node, world):
        key, path = ClusterKey.of(cluster), embedded(cluster).path
        rival = next((owner for other, owner in taken.items() if overlap(path, other)), None)
        if rival is not None:
            refused[key] = rival
            continue
        taken[path] = key
        ranks[key] = (not holds(key, node, world), of_namespace[key.namespace])
        of_namespace[key.namespace] += 1
        wanted.append(
            NodeCluster(
                namespace=key.namespace,
                name=key.name,
                path=path,
                provisioning="Thin" if embedded(cluster).provisioning == "Thin" else None,
                scratch=cluster.spec.scratch,
            )
        )
    wanted.sort(key=lambda entry: ranks[ClusterKey(entry.namespace, entry.name)])  # stable: by age within
    served, left = wanted[:MAX_CLUSTERS], wanted[MAX_CLUSTERS:]
    return Share(
        sorted(served, key=lambda entry: (entry.namespace, entry.name)),
        refused,
        frozenset(ClusterKey(entry.namespace, entry.name) for entry in left),
    )


def _claims(node: str, world: World) -> Iterator[StorageCluster]:
    """Clusters that want the node: those with volumes there first, then by age."""
    late = []
    for cluster in world.all_clusters():
        if holds(ClusterKey.of(cluster), node, world):
            yield cluster
        elif is_selected(cluster, node, world):
            late.append(cluster)
    yield from late


def overlap(one: str, other: str) -> bool:
    """Whether two clean absolute paths are the same folder or one lies in the other."""
    return one == other or one.startswith(other + "/") or other.startswith(one + "/")
