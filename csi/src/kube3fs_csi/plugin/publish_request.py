"""NodePublishVolume requests, checked once. Pure functions."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from kube3fs_crds import bytes_of
from kube3fs_csi import capabilities
from kube3fs_csi.api import csi_pb2
from kube3fs_csi.names import (
    ATTRIBUTE_HUGE,
    ATTRIBUTE_KIND,
    ATTRIBUTE_PASSTHROUGH,
    ATTRIBUTE_SIZE,
    PARAMETER_CLUSTER,
    PARAMETER_ORDERS,
    checked_id,
    checked_path,
    is_object_name,
    is_switched,
    parse_cluster,
)
from kube3fs_csi.node.mounts import MS_RDONLY
from kube3fs_csi.node.shm import MIN_BYTES
from kube3fs_csi.node.state import Kind, Pod, Published
from kube3fs_csi.serving.errors import InvalidArgument, NotFound, OutOfRange

HUGE = ("never", "always", "within_size", "advise")
"""Values of the tmpfs option huge=, see tmpfs(5)."""
_POD_UID = "csi.storage.k8s.io/pod.uid"
_POD_NAME = "csi.storage.k8s.io/pod.name"
_POD_NAMESPACE = "csi.storage.k8s.io/pod.namespace"
_EPHEMERAL = "csi.storage.k8s.io/ephemeral"
_FROM_KUBERNETES = ("csi.storage.k8s.io/", "storage.kubernetes.io/")
_UID = re.compile(r"[A-Za-z0-9-]{1,64}")
_GID = re.compile(r"[0-9]{1,10}")
_MAX_GID = 2**32 - 2  # the last one is chown(2)'s "leave it"
_MAX_NAME = 253
_ALLOWED = {
    "filesystem": {PARAMETER_CLUSTER, PARAMETER_ORDERS},
    "shm": {ATTRIBUTE_KIND, ATTRIBUTE_SIZE, ATTRIBUTE_HUGE},
    "client": {ATTRIBUTE_KIND},
    "scratch": {ATTRIBUTE_KIND, ATTRIBUTE_SIZE, ATTRIBUTE_PASSTHROUGH, PARAMETER_CLUSTER, PARAMETER_ORDERS},
}


@dataclass(frozen=True)
class Limits:
    """What this node allows."""

    kubelet_dir: Path
    max_shm_bytes: int
    client_dir: Path | None
    """The client library, if the node has it."""


def parse(request: csi_pb2.NodePublishVolumeRequest, limits: Limits) -> Published:
    """What is to be published."""
    volume_id = checked_id(request.volume_id)
    target = checked_path(request.target_path, limits.kubelet_dir, "target_path")
    if not request.HasField("volume_capability"):
        raise InvalidArgument("volume_capability is missing; ask for access type mount and an access mode")
    capability = request.volume_capability
    capabilities.check_one(capability)
    context = dict(request.volume_context)
    kind = _kind(context)
    _check_attributes(kind, context)
    if not is_object_name(volume_id):
        raise NotFound(f"there is no volume {volume_id}")
    mode = capability.access_mode.mode
    flags = capabilities.mount_flags(capability)
    read_only = (
        request.readonly or bool(flags & MS_RDONLY) or mode == capability.access_mode.SINGLE_NODE_READER_ONLY
    )
    return Published(
        volume_id=volume_id,
        target=target,
        kind=kind,
        pod=_pod(context, target),
        read_only=read_only,
        exclusive=mode == capability.access_mode.SINGLE_NODE_SINGLE_WRITER,
        mount_flags=flags & ~MS_RDONLY,
        group=_group(capability.mount.volume_mount_group),
        cluster=_cluster(kind, context),
        size=_size(kind, context, limits),
        huge=_huge(context),
        passthrough=_passthrough(context),
        orders=is_switched(context.get(PARAMETER_ORDERS, "false"), PARAMETER_ORDERS),
        source=_client(limits) if kind == "client" else None,
    )


def _kind(context: dict[str, str]) -> Kind:
    inline = context.get(_EPHEMERAL) == "true"
    kind = context.get(ATTRIBUTE_KIND, "")
    inline_kinds = [name for name in get_args(Kind) if name != "filesystem"]
    if not inline:
        if kind:
            raise InvalidArgument(
                f"{ATTRIBUTE_KIND} is for inline volumes; remove it from the PersistentVolume"
            )
        return "filesystem"
    if kind == "shm":
        return "shm"
    if kind == "client":
        return "client"
    if kind == "scratch":
        return "scratch"
    raise InvalidArgument(
        f"{ATTRIBUTE_KIND} is {kind[:100]!r}; set it in the inline volume to {', '.join(inline_kinds)}"
    )


def _check_attributes(kind: Kind, context: dict[str, str]) -> None:
    for key in sorted(context):
        if key not in _ALLOWED[kind] and not key.startswith(_FROM_KUBERNETES):
            allowed = ", ".join(sorted(_ALLOWED[kind]))
            raise InvalidArgument(f"a {kind} volume has no attribute {key[:100]!r}, only {allowed}")


def _pod(context: dict[str, str], target: Path) -> Pod:
    uid = context.get(_POD_UID, "")
    if uid and not _UID.fullmatch(uid):
        raise InvalidArgument(f"{_POD_UID} is {uid[:100]!r}, which is no uid")
    # Without podInfoOnMount nothing is known about the pod: the volume shares its memory with no other.
    key = uid or "target-" + hashlib.sha256(str(target).encode()).hexdigest()[:24]
    namespace, name = context.get(_POD_NAMESPACE, ""), context.get(_POD_NAME, "")
    if len(namespace) > _MAX_NAME or len(name) > _MAX_NAME:
        raise InvalidArgument(f"the pod's name and namespace have at most {_MAX_NAME} characters each")
    return Pod(key=key, namespace=namespace, name=name)


def _group(group: str) -> int | None:
    if not group:
        return None
    if not _GID.fullmatch(group) or int(group) > _MAX_GID:
        raise InvalidArgument(f"volume_mount_group is {group[:100]!r}; set fsGroup to the number of a group")
    return int(group)


def _cluster(kind: Kind, context: dict[str, str]) -> str:
    if kind in ("shm", "client"):
        return ""
    namespace, name = parse_cluster(context.get(PARAMETER_CLUSTER, ""))
    return f"{namespace}/{name}"


def _size(kind: Kind, context: dict[str, str], limits: Limits) -> int:
    if kind in ("filesystem", "client"):
        return 0
    text = context.get(ATTRIBUTE_SIZE, "")
    try:
        size = bytes_of(text)
    except ValueError as error:
        raise InvalidArgument(f"{ATTRIBUTE_SIZE}: {error}") from error
    least = MIN_BYTES if kind == "shm" else 1
    if size < least:
        raise InvalidArgument(
            f"{ATTRIBUTE_SIZE} is {text[:100]!r}; set it to at least {least} bytes, such as 8Gi"
        )
    if kind == "shm" and size > limits.max_shm_bytes:
        raise OutOfRange(
            f"{ATTRIBUTE_SIZE} is {text[:100]}, and this node allows {limits.max_shm_bytes} bytes of shared "
            "memory to a pod; ask for less, or run the pod on a larger node"
        )
    return size


def _passthrough(context: dict[str, str]) -> bool:
    value = context.get(ATTRIBUTE_PASSTHROUGH, "true")
    if value not in ("true", "false"):
        raise InvalidArgument(
            f'{ATTRIBUTE_PASSTHROUGH} is {value[:100]!r}; set it to "false" to have every read and write go '
            "through usrbiod, or leave it out"
        )
    return value == "true"


def _huge(context: dict[str, str]) -> str:
    huge = context.get(ATTRIBUTE_HUGE, "")
    if huge and huge not in HUGE:
        raise InvalidArgument(f"{ATTRIBUTE_HUGE} is {huge[:100]!r}; set it to one of {', '.join(HUGE)}")
    return huge


def _client(limits: Limits) -> Path:
    if limits.client_dir is None:
        raise InvalidArgument(
            "this node has no client library to show; install the chart with csi.node.client.enabled=true"
        )
    return limits.client_dir
