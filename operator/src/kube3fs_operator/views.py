"""What the operator knows of the API server's objects: small, typed views, and the world that holds them.

The views keep only what decisions read, so that memory stays small with thousands of objects and an update
that changes nothing we read is seen as no change.
"""

import datetime
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from kube3fs_crds import ClusterRef, StorageCluster, StorageNode, StorageSnapshot, StorageVolume

AGENT_TAINT = "kube3fs.io/agent-not-ready"


class ClusterKey(NamedTuple):
    """A StorageCluster by namespace and name. Hashable, unlike ClusterRef."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    @classmethod
    def of(cls, thing: ClusterRef | StorageCluster) -> "ClusterKey":
        """The key of a cluster, or of a reference to one."""
        if isinstance(thing, StorageCluster):
            return cls(thing.metadata.namespace or "", thing.metadata.name)
        return cls(thing.namespace, thing.name)


@dataclass(frozen=True)
class NodeView:
    """A Kubernetes node."""

    name: str
    labels: Mapping[str, str]
    ready: bool
    tainted: bool
    """It has the taint that keeps pods away until storage can be served."""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "NodeView":
        """From a core/v1 Node."""
        conditions = body.get("status", {}).get("conditions") or ()
        taints = body.get("spec", {}).get("taints") or ()
        return cls(
            name=body["metadata"]["name"],
            labels=dict(body["metadata"].get("labels") or {}),
            ready=any(c["type"] == "Ready" and c["status"] == "True" for c in conditions),
            tainted=any(taint["key"] == AGENT_TAINT for taint in taints),
        )


@dataclass(frozen=True)
class VolumeView:
    """A StorageVolume or a StorageSnapshot: something on a node that belongs to a cluster."""

    kind: str
    name: str
    node: str
    cluster: ClusterKey
    capacity_bytes: int
    deleting: bool
    finalizers: tuple[str, ...]
    created: datetime.datetime | None = None

    @classmethod
    def of_volume(cls, volume: StorageVolume) -> "VolumeView":
        """From a StorageVolume."""
        return cls(
            kind="StorageVolume",
            name=volume.metadata.name,
            node=volume.spec.node_name,
            cluster=ClusterKey.of(volume.spec.cluster_ref),
            capacity_bytes=volume.spec.capacity_bytes,
            deleting=volume.metadata.deletion_timestamp is not None,
            finalizers=tuple(volume.metadata.finalizers),
            created=volume.metadata.creation_timestamp,
        )

    @classmethod
    def of_snapshot(cls, snapshot: StorageSnapshot) -> "VolumeView":
        """From a StorageSnapshot. It counts as nothing allocated: it shares the volume's space."""
        return cls(
            kind="StorageSnapshot",
            name=snapshot.metadata.name,
            node=snapshot.spec.node_name,
            cluster=ClusterKey.of(snapshot.spec.cluster_ref),
            capacity_bytes=0,
            deleting=snapshot.metadata.deletion_timestamp is not None,
            finalizers=tuple(snapshot.metadata.finalizers),
            created=snapshot.metadata.creation_timestamp,
        )


class ClassKey(NamedTuple):
    """A StorageClass or VolumeSnapshotClass by kind and name."""

    kind: str
    name: str


class Handle(NamedTuple):
    """What a PersistentVolume or VolumeSnapshotContent of this driver refers to: kind and name of ours."""

    kind: str
    name: str


def handle_of(body: Mapping[str, Any], driver: str) -> Handle | None:
    """Of a PersistentVolume or VolumeSnapshotContent; None for another driver's, or before it has one."""
    spec = body.get("spec") or {}
    if body["kind"] == "PersistentVolume":
        source = spec.get("csi") or {}
        name, kind = source.get("volumeHandle"), "StorageVolume"
    else:
        source = spec
        name = (spec.get("source") or {}).get("snapshotHandle")
        name, kind = name or (body.get("status") or {}).get("snapshotHandle"), "StorageSnapshot"
    return Handle(kind, name) if name and source.get("driver") == driver else None


_K = TypeVar("_K")
_V = TypeVar("_V")

Index = Mapping[_K, Collection[_V]]
"""Objects by key, as kopf's indices have them: more than one object may share a key."""


@dataclass(frozen=True)
class World:
    """All that the operator has seen. The mappings are live in the operator, plain dicts in tests."""

    clusters: Index[ClusterKey, StorageCluster] = field(default_factory=dict)
    nodes: Index[str, NodeView] = field(default_factory=dict)
    storage_nodes: Index[str, StorageNode] = field(default_factory=dict)
    volumes_by_cluster: Index[ClusterKey, VolumeView] = field(default_factory=dict)
    """StorageVolumes and StorageSnapshots."""
    volumes_by_node: Index[str, VolumeView] = field(default_factory=dict)
    classes: Index[ClassKey, Mapping[str, Any]] = field(default_factory=dict)
    """StorageClasses and VolumeSnapshotClasses, as the API server returned them."""
    class_names: Mapping[str, str] = field(default_factory=dict)
    """Names of StorageClasses that do not begin with their namespace, and for each the namespace."""
    claims: Index[Handle, str] = field(default_factory=dict)
    """Names of the PersistentVolumes and VolumeSnapshotContents that refer to a volume or snapshot."""

    def cluster(self, key: ClusterKey) -> StorageCluster | None:
        """The cluster, or None when there is none."""
        return first(self.clusters, key)

    def node(self, name: str) -> NodeView | None:
        """The Kubernetes node, or None when there is none."""
        return first(self.nodes, name)

    def storage_node(self, name: str) -> StorageNode | None:
        """The StorageNode, or None when the node plugin has never come up there."""
        return first(self.storage_nodes, name)

    def all_clusters(self) -> Iterator[StorageCluster]:
        """Every cluster, oldest first; the order is the same in every run."""
        found = [cluster for store in list(self.clusters.values()) for cluster in store]
        yield from sorted(found, key=age)

    def of_cluster(self, key: ClusterKey) -> list[VolumeView]:
        """Volumes and snapshots of a cluster by name."""
        return sorted(self.volumes_by_cluster.get(key, ()), key=lambda view: (view.kind, view.name))

    def of_node(self, name: str) -> list[VolumeView]:
        """Volumes and snapshots on a node by name."""
        return sorted(self.volumes_by_node.get(name, ()), key=lambda view: (view.kind, view.name))


def first(index: Index[_K, _V], key: _K) -> _V | None:
    """The one object with that key, if there is one."""
    return next(iter(index.get(key, ())), None)


def age(cluster: StorageCluster) -> tuple[datetime.datetime, ClusterKey]:
    """Sorts clusters: who came first has the first right to a folder."""
    never = datetime.datetime.max.replace(tzinfo=datetime.UTC)
    return (cluster.metadata.creation_timestamp or never, ClusterKey.of(cluster))
