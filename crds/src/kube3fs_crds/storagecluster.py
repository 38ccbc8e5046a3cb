"""StorageCluster: what the user writes."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

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

LABEL_VALUE = "([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?"
LABEL_KEY = "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?"
NAMESPACE_OR_ALL = "^([*]|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$"

ScratchSize = Annotated[
    str,
    Field(
        min_length=1,
        max_length=20,
        json_schema_extra=rules(
            Rule(
                # All of these are less than 2^63 bytes.
                "self.matches('^([1-9][0-9]{0,17}|[1-9][0-9]{0,5}[KMGT]i|[1-9][0-9]{0,2}Pi)$')",
                "a size must be a whole number of bytes with Ki, Mi, Gi, Ti, Pi or nothing after it, for "
                "example 500Gi",
            )
        ),
    ),
]
"""A size that a user writes; `bytes_of` has its bytes."""


class EmbeddedEngine(ApiModel):
    """Storage from a folder of each chosen node. Volumes stay on the node that they were made on."""

    path: Annotated[
        HostPath,
        Field(
            json_schema_extra=rules(
                *HOST_PATH_RULES,
                immutable(
                    "path cannot change, because volumes lie there; put the old value back, "
                    "or make another StorageCluster"
                ),
            )
        ),
    ]
    """The folder on each node that holds the volumes: absolute, clean, fixed for the life of the cluster."""
    node_selector: Annotated[
        dict[str, Annotated[str, Field(max_length=63)]],
        Field(
            max_length=16,
            json_schema_extra=rules(
                Rule(
                    f"self.all(key, size(key) <= 317 && key.matches('^{LABEL_KEY}$'))",
                    "nodeSelector: each key must be a label key, for example kubernetes.io/hostname",
                ),
                Rule(
                    f"self.all(key, self[key].matches('^{LABEL_VALUE}$'))",
                    "nodeSelector: each value must be a label value: letters, digits and - _ . only, "
                    "with a letter or digit at both ends",
                ),
            ),
        ),
    ] = Field(default_factory=dict)
    """Labels that a node must have, all of them. Empty: every node that runs the node plugin."""
    provisioning: Literal["Thick", "Thin"] = "Thick"
    """Thick: volumes are promised only what the file system has, whoever else has folders on it. Thin: they
    may be promised the same room more than once, and writes fail when it is used up."""


class Engine(ApiModel):
    """Where the data is kept: exactly one block."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            exactly_one_of(["embedded"], "set exactly one engine block: spec.engine.embedded"),
        )
    )

    embedded: EmbeddedEngine | None = None
    """A folder on each node, served by usrbiod. No other service, no RDMA."""


class ScratchPolicy(ApiModel):
    """Who may have inline scratch volumes here, and how much. No ResourceQuota of Kubernetes counts them."""

    namespaces: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=63, pattern=NAMESPACE_OR_ALL)]],
        Field(min_length=1, max_length=64),
    ]
    """Namespaces whose pods may have scratch volumes; "*": all."""
    max_per_node: ScratchSize
    """Sum of the sizes of all scratch volumes on one node, for example 500Gi."""
    max_per_volume: ScratchSize | None = None
    """Largest size of one scratch volume. Default: maxPerNode."""

    def allows(self, namespace: str) -> bool:
        """Whether pods of `namespace` may have scratch volumes."""
        return "*" in self.namespaces or namespace in self.namespaces


class StorageClusterSpec(ApiModel):
    """What the cluster should be."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            fixed_once(
                "storageClassName",
                "storageClassName cannot change, because claims refer to it; put the old value back, "
                "or make another StorageCluster",
            ),
        )
    )

    engine: Engine
    storage_class_name: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=253,
                json_schema_extra=rules(
                    Rule(
                        "self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$') && !self.contains('..')",
                        "storageClassName must be a DNS subdomain: small letters, digits, - and . only, "
                        "with a letter or digit at both ends",
                    )
                ),
            ),
        ]
        | None
    ) = None
    """Name of the StorageClass and VolumeSnapshotClass made for this cluster. Default: NAMESPACE.NAME."""
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What deleting this object does with volumes that no PersistentVolume refers to any more: Retain waits
    until somebody deletes them, Delete deletes them with their data. Volumes in use always block it."""
    scratch: ScratchPolicy | None = None
    """Inline scratch volumes (csi.kube3fs.io/kind: scratch). Absent: none may be made; those that pods have
    already stay."""


class ClusterNodes(ApiModel):
    """How many nodes serve the cluster."""

    total: Count
    """Nodes that should serve it: selected now, or still holding volumes."""
    ready: Count
    """Nodes that can serve it now."""


class ClusterSummary(ApiModel):
    """The status in words for `kubectl get`."""

    nodes: Word
    """Ready nodes of all, for example 2/3."""
    capacity: Word
    """Size of the file systems below, for example 1.8Ti."""
    available: Word
    """What new volumes may have: free space that is not promised yet."""
    allocated: Word
    """Sum of the sizes of all volumes, scratch volumes included."""
    scratch: Word | None = None
    """Of these, scratch volumes: their size and number, for example 40Gi (2)."""


class StorageClusterStatus(Status):
    """What the operator saw and did last."""

    nodes: ClusterNodes | None = None
    capacity_bytes: Bytes | None = None
    """Size of the file systems below, over all ready nodes."""
    available_bytes: Bytes | None = None
    """Free space of those file systems."""
    unreserved_bytes: Bytes | None = None
    """What new volumes may have in all: free space that is not promised to volumes yet."""
    allocated_bytes: Bytes | None = None
    """Sum of the sizes of all volumes."""
    scratch_bytes: Bytes | None = None
    """Sum of the sizes of the scratch volumes that pods have now, over all nodes."""
    scratch_volumes: Count | None = None
    """Number of scratch volumes that pods have now."""
    volumes: Count | None = None
    """Number of StorageVolumes."""
    snapshots: Count | None = None
    """Number of StorageSnapshots."""
    storage_class_name: Annotated[str, Field(max_length=253)] | None = None
    """The StorageClass to name in a claim."""
    summary: ClusterSummary | None = None


class StorageCluster(Resource):
    """A storage cluster: an engine that holds data, and the StorageClass by which pods claim its volumes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "size(self.metadata.name) <= 63 && !self.metadata.name.contains('.')",
                "metadata.name must have at most 63 characters and no dots: "
                "names of other objects are made from it",
            ),
        )
    )
    names: ClassVar[Names] = Names(
        plural="storageclusters",
        short="tfs",
        namespaced=True,
        columns=(
            READY,
            Column("Nodes", "string", ".status.summary.nodes"),
            Column("Volumes", "integer", ".status.volumes"),
            Column("Allocated", "string", ".status.summary.allocated"),
            Column("Scratch", "string", ".status.summary.scratch"),
            Column("Capacity", "string", ".status.summary.capacity"),
            Column("Free", "string", ".status.summary.available"),
            Column("StorageClass", "string", ".status.storageClassName"),
            REASON,
            AGE,
        ),
    )

    kind: Literal["StorageCluster"] = "StorageCluster"
    spec: StorageClusterSpec
    status: StorageClusterStatus = StorageClusterStatus()
