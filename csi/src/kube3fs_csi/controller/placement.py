"""Where a volume goes, from what the nodes report. Pure functions."""

from collections.abc import Iterable, Sequence

from kube3fs_crds import ClusterRef, NodeClusterStatus, StorageNode
from kube3fs_csi.serving.errors import Exhausted


def share_of(node: StorageNode, cluster: ClusterRef) -> NodeClusterStatus | None:
    """What `node` reports about its share of `cluster`."""
    for share in shares(node):
        if (share.namespace, share.name) == (cluster.namespace, cluster.name):
            return share
    return None


def shares(node: StorageNode) -> list[NodeClusterStatus]:
    """What `node` reports about all clusters: nothing is ready if nobody knows how it fares."""
    unknown = next(
        (one for one in node.status.conditions if one.type == "Ready" and one.status == "Unknown"), None
    )
    if unknown is None:
        return node.status.clusters
    return [
        share.model_copy(update={"ready": False, "message": unknown.message})
        for share in node.status.clusters
    ]


def room(share: NodeClusterStatus) -> int:
    """Bytes that a new volume may have there: no more is promised than there is."""
    if not share.ready:
        return 0
    if share.reserved_bytes is not None:
        return max(0, (share.available_bytes or 0) - share.reserved_bytes)
    # From a node plugin that does not count what the other clusters of the file system have promised.
    capacity, allocated = share.capacity_bytes or 0, share.allocated_bytes or 0
    return max(0, min(capacity - allocated, share.available_bytes or 0))


def choose(nodes: Iterable[StorageNode], cluster: ClusterRef, size: int, allowed: Sequence[str]) -> str:
    """The first of `allowed` that has room for `size` bytes; without a list, the node with the most room."""
    here = {node.metadata.name: share_of(node, cluster) for node in nodes}
    candidates = list(allowed) or sorted(here)
    rooms = {name: room(share) for name in candidates if (share := here.get(name)) is not None}
    fitting = [name for name in candidates if rooms.get(name, 0) >= size]
    if fitting:
        return fitting[0] if allowed else max(fitting, key=lambda name: rooms[name])
    raise Exhausted(_why(here, rooms, candidates, cluster, size))


def _why(
    shares: dict[str, NodeClusterStatus | None],
    rooms: dict[str, int],
    candidates: Sequence[str],
    cluster: ClusterRef,
    size: int,
) -> str:
    where = candidates[0] if len(candidates) == 1 else f"any of {len(candidates)} nodes"
    if not rooms:
        return (
            f"StorageCluster {cluster} is not served on {where}; use a node that its nodeSelector chooses "
            "(`kubectl get storagenodes` lists them)"
        )
    ready = {name: share for name, share in shares.items() if name in rooms and share and share.ready}
    if not ready:
        message = next(share.message for name, share in shares.items() if name in rooms and share)
        return f"StorageCluster {cluster} is not ready on {where}: {message}"
    most = max(rooms.values())
    return f"no room for {size} bytes on {where}: at most {most} are left; ask for less or delete volumes"
