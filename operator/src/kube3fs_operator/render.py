"""The objects that belong to a cluster, as they should be. Pure.

StorageClasses are not namespaced, so an owner reference cannot point from them to a StorageCluster: labels
say whose they are.
"""

from collections.abc import Mapping
from typing import Any

from kube3fs_crds import API_VERSION, NodeCluster, StorageCluster
from kube3fs_operator.health import examine
from kube3fs_operator.placement import selected
from kube3fs_operator.views import ClassKey, ClusterKey, World

DRIVER = "csi.kube3fs.io"
TOPOLOGY_KEY = "csi.kube3fs.io/node"
CLUSTER_PARAMETER = "csi.kube3fs.io/cluster"
FINALIZER = "kube3fs.io/storagecluster"
MANAGED_BY = "kube3fs-operator"
NAMESPACE_LABEL = "kube3fs.io/cluster-namespace"
NAME_LABEL = "kube3fs.io/cluster-name"

Object = dict[str, Any]


def class_name(cluster: StorageCluster) -> str:
    """Name of the StorageClass and VolumeSnapshotClass; unambiguous, as a namespace has no dots."""
    return cluster.spec.storage_class_name or f"{cluster.metadata.namespace}.{cluster.metadata.name}"


def has_own_name(cluster: StorageCluster, world: World) -> bool:
    """Whether the name of its class is the cluster's to take: no other namespace has a claim to it."""
    name, namespace = class_name(cluster), cluster.metadata.namespace
    return name.startswith(f"{namespace}.") or world.class_names.get(name) == namespace


def may_have_class(cluster: StorageCluster, world: World) -> bool:
    """Whether a class of that name may be made for the cluster. One that was made once stays."""
    key = ClusterKey.of(cluster)
    made = any(
        owner(body) == key for body in world.classes.get(ClassKey("StorageClass", class_name(cluster)), ())
    )
    return made or bool(world.of_cluster(key)) or has_own_name(cluster, world)


def classes(cluster: StorageCluster, world: World) -> list[Object]:
    """The StorageClass and VolumeSnapshotClass.

    None while no node is chosen, and none made before a node can serve: a claim could not be bound, and the
    scheduler would have learnt that there is no space, which it looks at again only after a while.
    """
    nodes, name = selected(cluster, world), class_name(cluster)
    made = ClassKey("StorageClass", name) in world.classes
    if not nodes or not (made or any(node.ready and node.selected for node in examine(cluster, world))):
        return []
    metadata = {"name": name, "labels": owner_labels(ClusterKey.of(cluster))}
    return [
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": metadata,
            "provisioner": DRIVER,
            "parameters": {CLUSTER_PARAMETER: str(ClusterKey.of(cluster))},
            "reclaimPolicy": "Delete",
            # The data is on one node: the scheduler chooses it together with the pod.
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": True,
            "allowedTopologies": [{"matchLabelExpressions": [{"key": TOPOLOGY_KEY, "values": nodes}]}],
        },
        {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotClass",
            "metadata": metadata,
            "driver": DRIVER,
            "deletionPolicy": "Delete",
        },
    ]


def owner_labels(key: ClusterKey) -> dict[str, str]:
    """Labels of everything that is made for the cluster."""
    return {
        "app.kubernetes.io/managed-by": MANAGED_BY,
        "app.kubernetes.io/part-of": "kube3fs",
        NAMESPACE_LABEL: key.namespace,
        NAME_LABEL: key.name,
    }


def owner(body: Mapping[str, Any]) -> ClusterKey | None:
    """The cluster for which an object was made; None for an object that is not ours."""
    labels = body["metadata"].get("labels") or {}
    if labels.get("app.kubernetes.io/managed-by") != MANAGED_BY:
        return None
    return ClusterKey(labels.get(NAMESPACE_LABEL, ""), labels.get(NAME_LABEL, ""))


def key_of(body: Mapping[str, Any]) -> ClassKey:
    """Kind and name."""
    return ClassKey(body["kind"], body["metadata"]["name"])


def finalizer(cluster: StorageCluster, *, present: bool) -> Object:
    """Apply this to add our finalizer, or to take it away; other finalizers stay."""
    return {
        "apiVersion": API_VERSION,
        "kind": "StorageCluster",
        "metadata": {
            "namespace": cluster.metadata.namespace,
            "name": cluster.metadata.name,
            # An object that was deleted meanwhile must not be made again by the patch.
            "uid": cluster.metadata.uid,
            "finalizers": [FINALIZER] if present else [],
        },
    }


def node_spec(node: str, clusters: list[NodeCluster]) -> Object:
    """The StorageNode with what it should serve. The whole list is ours."""
    return {
        "apiVersion": API_VERSION,
        "kind": "StorageNode",
        "metadata": {"name": node},
        "spec": {"clusters": [entry.as_object() for entry in clusters]},
    }


def covers(seen: Any, wanted: Any) -> bool:
    """Whether everything in `wanted` is in `seen` with the same value. Lists are compared whole."""
    if isinstance(wanted, Mapping):
        return isinstance(seen, Mapping) and all(k in seen and covers(seen[k], v) for k, v in wanted.items())
    return bool(seen == wanted)
