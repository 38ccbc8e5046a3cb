"""The API types of kube3fs.io/v1alpha1 as pydantic models, and the CRDs made from them.

    volume = StorageVolume.model_validate(obj)      # what an API client returned; unknown fields are ignored
    body = volume.as_object()                       # back to camelCase and JSON types, unset fields left out

Models are frozen: change one with `model_copy(update=...)`.
"""

from kube3fs_crds.base import (
    API_VERSION,
    GROUP,
    VERSION,
    ApiModel,
    CallError,
    ClusterRef,
    Condition,
    ObjectMeta,
    Resource,
    now,
)
from kube3fs_crds.quantity import bytes_of
from kube3fs_crds.storagecluster import (
    ClusterNodes,
    ClusterSummary,
    EmbeddedEngine,
    Engine,
    ScratchPolicy,
    StorageCluster,
    StorageClusterSpec,
    StorageClusterStatus,
)
from kube3fs_crds.storagenode import (
    LEASE_SECONDS,
    MAX_CLUSTERS,
    DaemonKernel,
    DaemonStatus,
    NodeCluster,
    NodeClusterFeatures,
    NodeClusterStatus,
    RdmaDevice,
    RdmaPort,
    RdmaStatus,
    StorageNode,
    StorageNodeSpec,
    StorageNodeStatus,
    lease_name,
)
from kube3fs_crds.storagesnapshot import StorageSnapshot, StorageSnapshotSpec, StorageSnapshotStatus
from kube3fs_crds.storagevolume import (
    MAX_USERS,
    StorageVolume,
    StorageVolumeSpec,
    StorageVolumeStatus,
    VolumeProgress,
    VolumeSource,
)

KINDS: tuple[type[Resource], ...] = (StorageCluster, StorageNode, StorageVolume, StorageSnapshot)

__all__ = [
    "API_VERSION",
    "GROUP",
    "KINDS",
    "LEASE_SECONDS",
    "MAX_CLUSTERS",
    "MAX_USERS",
    "VERSION",
    "ApiModel",
    "CallError",
    "ClusterNodes",
    "ClusterRef",
    "ClusterSummary",
    "Condition",
    "DaemonKernel",
    "DaemonStatus",
    "EmbeddedEngine",
    "Engine",
    "NodeCluster",
    "NodeClusterFeatures",
    "NodeClusterStatus",
    "ObjectMeta",
    "RdmaDevice",
    "RdmaPort",
    "RdmaStatus",
    "Resource",
    "ScratchPolicy",
    "StorageCluster",
    "StorageClusterSpec",
    "StorageClusterStatus",
    "StorageNode",
    "StorageNodeSpec",
    "StorageNodeStatus",
    "StorageSnapshot",
    "StorageSnapshotSpec",
    "StorageSnapshotStatus",
    "StorageVolume",
    "StorageVolumeSpec",
    "StorageVolumeStatus",
    "VolumeProgress",
    "VolumeSource",
    "bytes_of",
    "lease_name",
    "now",
]
