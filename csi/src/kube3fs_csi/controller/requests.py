"""What is asked for in CreateVolume and its kin, checked once. Pure functions."""

from collections.abc import Mapping
from typing import NamedTuple

from kube3fs_crds import ClusterRef, VolumeSource
from kube3fs_csi import capabilities
from kube3fs_csi.api import csi_pb2
from kube3fs_csi.names import (
    PARAMETER_CLUSTER,
    PARAMETER_ORDERS,
    TOPOLOGY_KEY,
    checked_id,
    is_switched,
    object_name,
    parse_cluster,
)
from kube3fs_csi.serving.errors import InvalidArgument, OutOfRange

DEFAULT_BYTES = 1 << 30
MAX_BYTES = 1 << 62
"""The most that a StorageVolume can say."""
_FROM_PROVISIONER = "csi.storage.k8s.io/"
"""Parameters of the sidecars themselves, such as the names of claim and namespace."""
_PARAMETERS = (PARAMETER_CLUSTER, PARAMETER_ORDERS)


class Wanted(NamedTuple):
    """A volume as CreateVolume asks for it."""

    name: str
    cluster: ClusterRef
    required: int
    limit: int
    """0: none."""
    source: VolumeSource | None
    nodes: tuple[str, ...]
    """Nodes that may hold it, the best first; none: all may."""
    claim: str
    """NAMESPACE/NAME of the claim that it is for, or '' if the provisioner did not say."""


def wanted_volume(request: csi_pb2.CreateVolumeRequest) -> Wanted:
    """What a CreateVolume request asks for."""
    name = object_name(request.name)
    capabilities.check(request.volume_capabilities)
    check_mutable_parameters(request.mutable_parameters)
    required, limit = capacity(request.capacity_range)
    return Wanted(
        name,
        cluster_of(dict(request.parameters)),
        required,
        limit,
        source_of(request.volume_content_source),
        nodes_of(request.accessibility_requirements),
        claim_of(request.parameters),
    )


def cluster_of(parameters: dict[str, str]) -> ClusterRef:
    """The StorageCluster that a StorageClass's parameters name."""
    unknown = sorted(
        key for key in parameters if key not in _PARAMETERS and not key.startswith(_FROM_PROVISIONER)
    )
    if unknown:
        known = " and ".join(_PARAMETERS)
        raise InvalidArgument(
            f"unknown parameter {unknown[0][:100]!r}; StorageClasses have only {known} here"
        )
    takes_orders(parameters)
    namespace, name = parse_cluster(parameters.get(PARAMETER_CLUSTER, ""))
    return ClusterRef(namespace=namespace, name=name)


def claim_of(parameters: Mapping[str, str]) -> str:
    """The claim, as external-provisioner's --extra-create-metadata tells it."""
    parts = [parameters.get(f"{_FROM_PROVISIONER}pvc/{part}", "") for part in ("namespace", "name")]
    return "/".join(parts) if all(parts) else ""


def content_of(parameters: Mapping[str, str]) -> str:
    """The VolumeSnapshotContent, as external-snapshotter's --extra-create-metadata tells it."""
    return parameters.get(f"{_FROM_PROVISIONER}volumesnapshotcontent/name", "")


def takes_orders(parameters: Mapping[str, str]) -> bool:
    """Whether links to mv: are orders in the volumes of a StorageClass."""
    return is_switched(parameters.get(PARAMETER_ORDERS, "false"), PARAMETER_ORDERS)


def check_mutable_parameters(parameters: Mapping[str, str]) -> None:
    """A VolumeAttributesClass of this driver has no parameters."""
    if parameters:
        raise InvalidArgument("volumes have no mutable parameters; remove the VolumeAttributesClass")


def check_snapshot_parameters(parameters: dict[str, str]) -> None:
    """A VolumeSnapshotClass of this driver has no parameters."""
    for key in parameters:
        if not key.startswith(_FROM_PROVISIONER):
            raise InvalidArgument(f"unknown parameter {key[:100]!r}; VolumeSnapshotClasses have none here")


def capacity(asked: csi_pb2.CapacityRange) -> tuple[int, int]:
    """Bytes required, and the limit or 0."""
    required, limit = asked.required_bytes, asked.limit_bytes
    if required < 0 or limit < 0:
        raise InvalidArgument("a capacity is negative; ask for more than 0 bytes")
    if limit and limit < required:
        raise InvalidArgument(f"the limit of {limit} bytes is below the {required} bytes required; raise it")
    if required > MAX_BYTES:
        raise OutOfRange(f"{required} bytes are more than any volume can have; ask for {MAX_BYTES} or less")
    wanted = required or min(DEFAULT_BYTES, limit or DEFAULT_BYTES)
    return wanted, limit


def source_of(source: csi_pb2.VolumeContentSource) -> VolumeSource | None:
    """What the new volume is a copy of."""
    which = source.WhichOneof("type")
    if which == "snapshot":
        return VolumeSource(snapshot=checked_id(source.snapshot.snapshot_id, "snapshot"))
    if which == "volume":
        return VolumeSource(volume=checked_id(source.volume.volume_id))
    return None


def nodes_of(topology: csi_pb2.TopologyRequirement) -> tuple[str, ...]:
    """Nodes that may hold the volume, preferred ones first, without doubles."""
    terms = [*topology.preferred, *topology.requisite]
    nodes = [term.segments[TOPOLOGY_KEY] for term in terms if TOPOLOGY_KEY in term.segments]
    if terms and not nodes:
        raise InvalidArgument(f"the topology requirement has no {TOPOLOGY_KEY}, the only key of this driver")
    required = {term.segments.get(TOPOLOGY_KEY) for term in topology.requisite}
    return tuple(dict.fromkeys(node for node in nodes if not required or node in required))
