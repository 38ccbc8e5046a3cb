"""May this destructive step run? Pure: each gate gets facts that were read from the API server a moment ago.

A cache may lag, so no gate is fed from the world alone.
"""

from collections.abc import Collection, Mapping
from typing import Any

from kube3fs_crds import StorageCluster
from kube3fs_operator.views import VolumeView

NODE_FINALIZER = "kube3fs.io/node"


def may_delete_leftover(cluster: StorageCluster, volume: VolumeView, unclaimed: Collection[str]) -> bool:
    """We delete a volume only with its cluster, by the user's policy, when no PersistentVolume names it."""
    return (
        cluster.metadata.deletion_timestamp is not None
        and cluster.spec.deletion_policy == "Delete"
        and volume.kind == "StorageVolume"
        and not volume.deleting
        and volume.name in unclaimed
    )


def may_release_cluster(cluster: StorageCluster, live: Collection[Mapping[str, Any]]) -> bool:
    """A cluster goes when nothing that is stored refers to it. `live`: every volume and snapshot there is."""
    if cluster.metadata.deletion_timestamp is None:
        return False
    mine = {"namespace": cluster.metadata.namespace, "name": cluster.metadata.name}
    return all(body["spec"]["clusterRef"] != mine for body in live)


def may_give_up(volume: VolumeView, *, node_exists: bool) -> bool:
    """Its node's finalizer is dropped only when somebody deleted the volume and the node is no more."""
    return volume.deleting and NODE_FINALIZER in volume.finalizers and not node_exists


def may_forget_node(held: Collection[VolumeView], *, node_exists: bool) -> bool:
    """A StorageNode goes when its node is no more and nothing refers to it."""
    return not node_exists and not held
