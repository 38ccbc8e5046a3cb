"""StorageVolume: one per PersistentVolume; made by the CSI controller, carried out by its node."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from kube3fs_crds.base import (
    AGE,
    READY,
    REASON,
    ApiModel,
    Bytes,
    CallError,
    ClusterRef,
    Column,
    Name,
    Names,
    Resource,
    Rule,
    Status,
    Word,
    exactly_one_of,
    fixed_once,
    immutable,
    rules,
)

MAX_USERS = 16

SIZE_RULES = rules(
    Rule("self > 0", "capacityBytes must be more than 0"),
    Rule(
        "self >= oldSelf",
        "capacityBytes can only grow; set it to the present size or more",
        "FieldValueForbidden",
    ),
)


class VolumeSource(ApiModel):
    """What a new volume is filled from: exactly one of them."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            exactly_one_of(["snapshot", "volume"], "set exactly one of source.snapshot and source.volume"),
        )
    )

    snapshot: Name | None = None
    """Name of a StorageSnapshot on the same node."""
    volume: Name | None = None
    """Name of a StorageVolume on the same node."""


class StorageVolumeSpec(ApiModel):
    """What the volume should be."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            fixed_once("source", "source cannot change: it is what the volume was made from"),
        )
    )

    node_name: Annotated[
        Name,
        Field(
            json_schema_extra=rules(immutable("nodeName cannot change: the volume's data lies on that node"))
        ),
    ]
    """The node that holds the data."""
    cluster_ref: Annotated[
        ClusterRef,
        Field(json_schema_extra=rules(immutable("clusterRef cannot change: the cluster holds the data"))),
    ]
    """The StorageCluster that the volume belongs to."""
    capacity_bytes: Annotated[Bytes, Field(json_schema_extra=SIZE_RULES)]
    """The size that the user asked for. It may grow."""
    source: VolumeSource | None = None
    delete_requested: bool | None = None
    """Asks the node whether the volume may be deleted: it answers with usedBy as it is now."""


class VolumeProgress(ApiModel):
    """How far the copy from the source has come."""

    done_bytes: Bytes
    total_bytes: Bytes


class StorageVolumeStatus(Status):
    """What the node did. Conditions: Ready, CapacityEnforced."""

    capacity_bytes: Bytes | None = None
    """The size that the node has given the volume."""
    size: Word | None = None
    """The same in words for `kubectl get`, for example 10Gi."""
    backend: Literal["btrfs", "directory"] | None = None
    """How the volume is kept: a btrfs subvolume, or a plain directory."""
    used_by: Annotated[list[Annotated[str, Field(max_length=320)]], Field(max_length=MAX_USERS)] = Field(
        default_factory=list
    )
    """Pods that have the volume mounted, as NAMESPACE/NAME; the first 16 by name."""
    error: CallError | None = None
    """Set while the last attempt failed."""
    progress: VolumeProgress | None = None
    """Set while the volume is being filled."""


class StorageVolume(Resource):
    """A volume on a node. Its name is the CSI volume id and the name of its PersistentVolume."""

    names: ClassVar[Names] = Names(
        plural="storagevolumes",
        short="tfv",
        namespaced=False,
        columns=(
            Column("Node", "string", ".spec.nodeName"),
            Column("Namespace", "string", ".spec.clusterRef.namespace", 1),
            Column("Cluster", "string", ".spec.clusterRef.name"),
            Column("Size", "string", ".status.size"),
            READY,
            REASON,
            Column("Backend", "string", ".status.backend", 1),
            AGE,
        ),
        selectable=(".spec.nodeName",),
    )

    kind: Literal["StorageVolume"] = "StorageVolume"
    spec: StorageVolumeSpec
    status: StorageVolumeStatus = StorageVolumeStatus()
