"""StorageNode: one per node, named as the node. The operator writes the spec, the node plugin the status."""

import hashlib
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from kube3fs_crds.base import (
    AGE,
    HOST_PATH_RULES,
    READY,
    REASON,
    ApiModel,
    Bytes,
    Column,
    Count,
    HostPath,
    Message,
    Names,
    Resource,
    Status,
    Word,
    keyed_by,
    rules,
)
from kube3fs_crds.storagecluster import ScratchPolicy

MAX_CLUSTERS = 128
LEASE_SECONDS = 40
"""How long a Lease of a node plugin holds without being renewed."""
_MAX_NAME = 253


def lease_name(node: str) -> str:
    """Name of the Lease, in the release's namespace, that the node plugin of `node` renews while it reports.

    A StorageNode whose Lease has run out says what was, not what is.
    """
    name = f"kube3fs-node.{node}"
    if len(name) <= _MAX_NAME:
        return name
    return f"kube3fs-node.{hashlib.sha256(node.encode()).hexdigest()}"


class NodeCluster(ApiModel):
    """A StorageCluster that this node should serve."""

    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    name: Annotated[str, Field(min_length=1, max_length=63)]
    path: Annotated[HostPath, Field(json_schema_extra=rules(*HOST_PATH_RULES))]
    """The folder that holds the cluster's volumes on this node."""
    provisioning: Literal["Thick", "Thin"] | None = None
    """Whether the cluster may promise the same room more than once. Absent: Thick."""
    scratch: ScratchPolicy | None = None
    """The cluster's rules for inline scratch volumes. Absent: none may be made."""


class StorageNodeSpec(ApiModel):
    """What the operator wants the node to do."""

    clusters: Annotated[
        list[NodeCluster], Field(max_length=MAX_CLUSTERS, json_schema_extra=keyed_by("namespace", "name"))
    ] = Field(default_factory=list)


class DaemonKernel(ApiModel):
    """What the kernel offers to usrbiod."""

    release: Word
    """As uname -r prints it."""
    passthrough: bool
    """FUSE passthrough (Linux 6.9): reads and writes go straight to the file below."""
    resend: bool
    """FUSE resend (Linux 6.9): a successor gets the requests that a killed daemon had not answered."""
    io_uring: bool
    """io_uring may be used; without it rings are served by pread and pwrite."""


class DaemonStatus(ApiModel):
    """The node daemon, usrbiod."""

    version: Word
    healthy: bool
    """It answered its control socket."""
    message: Message = ""
    """Why not, when it is not healthy."""
    kernel: DaemonKernel | None = None


class NodeClusterFeatures(ApiModel):
    """What the file system below the cluster's folder can do."""

    quota: bool
    """The size of a volume is enforced."""
    reflink: bool
    """A copy of a file shares its blocks."""
    snapshot: bool
    """A snapshot is taken at once, whatever the volume's size."""


class NodeClusterStatus(ApiModel):
    """How one StorageCluster fares on this node."""

    namespace: Annotated[str, Field(min_length=1, max_length=63)]
    name: Annotated[str, Field(min_length=1, max_length=63)]
    path: Annotated[str, Field(max_length=512)]
    ready: bool
    """Volumes can be made and mounted here."""
    reason: Word = ""
    """Why not, in CamelCase, for programs: StorageHung, DataMissing, FolderUnusable or others."""
    message: Message = ""
    """Why not, and what to do about it."""
    backend: Literal["btrfs", "directory"] | None = None
    """How volumes are kept: btrfs subvolumes, or plain directories."""
    features: NodeClusterFeatures | None = None
    capacity_bytes: Bytes | None = None
    """Size of the file system below the folder."""
    available_bytes: Bytes | None = None
    """Free space of that file system."""
    allocated_bytes: Bytes | None = None
    """Sum of the sizes of the cluster's volumes here."""
    file_system: Word | None = None
    """Tells that file system from others of this node: several clusters may be on one."""
    reserved_bytes: Bytes | None = None
    """Free bytes of that file system that a new volume may not have: volumes, of whatever cluster, were
    promised them and do not use them yet."""
    volumes: Count | None = None
    """The cluster's volumes here."""
    scratch_bytes: Bytes | None = None
    """Sum of the sizes of the scratch volumes that pods have here now."""
    scratch_volumes: Count | None = None
    """The scratch volumes that pods have here now."""


class RdmaPort(ApiModel):
    """A port of an RDMA device."""

    number: Annotated[int, Field(ge=1, le=255)]
    state: Word
    """As verbs names it, for example ACTIVE."""
    link_layer: Word
    """InfiniBand or Ethernet."""
    gids: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=256)] = Field(
        default_factory=list
    )
    """The port's GID table without its empty rows."""


class RdmaDevice(ApiModel):
    """An RDMA device of the node."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    """For example mlx5_0."""
    numa_node: int | None = None
    """The NUMA node that the device is attached to; absent when the machine does not say."""
    ports: Annotated[list[RdmaPort], Field(max_length=16, json_schema_extra=keyed_by("number"))] = Field(
        default_factory=list
    )


class RdmaStatus(ApiModel):
    """What verbs finds on the node."""

    message: Message = ""
    """Why there is no device, or what is wrong with one."""
    devices: Annotated[list[RdmaDevice], Field(max_length=64, json_schema_extra=keyed_by("name"))] = Field(
        default_factory=list
    )


class StorageNodeStatus(Status):
    """What the node plugin saw last."""

    driver_version: Word | None = None
    """The node plugin's version."""
    daemon: DaemonStatus | None = None
    clusters: Annotated[
        list[NodeClusterStatus],
        Field(max_length=MAX_CLUSTERS, json_schema_extra=keyed_by("namespace", "name")),
    ] = Field(default_factory=list)
    rdma: RdmaStatus | None = None


class StorageNode(Resource):
    """A node's share in the storage clusters: what it should serve and what it can."""

    names: ClassVar[Names] = Names(
        plural="storagenodes",
        short="tfn",
        namespaced=False,
        columns=(
            READY,
            Column("Daemon", "string", ".status.daemon.version"),
            Column("Clusters", "string", ".status.clusters[*].name"),
            Column("Kernel", "string", ".status.daemon.kernel.release", 1),
            Column("RDMA", "string", ".status.rdma.devices[*].name", 1),
            REASON,
            AGE,
        ),
    )

    kind: Literal["StorageNode"] = "StorageNode"
    spec: StorageNodeSpec = StorageNodeSpec()
    status: StorageNodeStatus = StorageNodeStatus()
