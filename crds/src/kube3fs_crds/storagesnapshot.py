"""StorageSnapshot: one per CSI snapshot; made by the CSI controller, carried out by the node named in it."""

import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kube3fs_crds.base import (
    AGE,
    ApiModel,
    Bytes,
    CallError,
    ClusterRef,
    Column,
    Name,
    Names,
    Resource,
    Status,
    immutable,
    rules,
)

FIXED = rules(immutable("a StorageSnapshot's spec cannot change: take another snapshot"))


class StorageSnapshotSpec(ApiModel):
    """What the snapshot is of."""

    node_name: Name
    """The node that holds the volume, and the snapshot."""
    volume_name: Name
    """Name of the StorageVolume."""
    cluster_ref: ClusterRef
    """The StorageCluster that the volume belongs to."""


class StorageSnapshotStatus(Status):
    """What the node did."""

    ready_to_use: bool = False
    """Volumes can be made from it."""
    creation_time: datetime.datetime | None = None
    """The moment whose data the snapshot holds."""
    size_bytes: Bytes | None = None
    """The least size of a volume made from it."""
    error: CallError | None = None
    """Set while the last attempt failed."""


class StorageSnapshot(Resource):
    """A snapshot of a StorageVolume. Its name is the CSI snapshot id."""

    names: ClassVar[Names] = Names(
        plural="storagesnapshots",
        short="tfss",
        namespaced=False,
        columns=(
            Column("Node", "string", ".spec.nodeName"),
            Column("Volume", "string", ".spec.volumeName"),
            Column("ReadyToUse", "boolean", ".status.readyToUse"),
            Column("Cluster", "string", ".spec.clusterRef.name", 1),
            AGE,
        ),
        selectable=(".spec.nodeName",),
    )

    kind: Literal["StorageSnapshot"] = "StorageSnapshot"
    spec: Annotated[StorageSnapshotSpec, Field(json_schema_extra=FIXED)]
    status: StorageSnapshotStatus = StorageSnapshotStatus()
