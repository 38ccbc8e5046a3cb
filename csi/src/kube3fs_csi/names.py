"""Names that users and other components see, and the checks of what they hand in under these names."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from kube3fs_csi.serving.errors import InvalidArgument

DRIVER = "csi.kube3fs.io"
TOPOLOGY_KEY = "csi.kube3fs.io/node"
PARAMETER_CLUSTER = "csi.kube3fs.io/cluster"
"""StorageClass parameter and volume attribute: the StorageCluster, as NAMESPACE/NAME."""
PARAMETER_ORDERS = "csi.kube3fs.io/orders"
"""StorageClass parameter and volume attribute: "true", links to mv: rename, wherever they are made."""
ATTRIBUTE_KIND = "csi.kube3fs.io/kind"
ATTRIBUTE_SIZE = "csi.kube3fs.io/size"
ATTRIBUTE_HUGE = "csi.kube3fs.io/huge"
ATTRIBUTE_PASSTHROUGH = "csi.kube3fs.io/passthrough"
FINALIZER_NODE = "kube3fs.io/node"
PENDING_FOR = "kube3fs.io/pending-for"
"""Annotation of a StorageVolume or StorageSnapshot until it was first handed out: for whom it is made. That
is the claim, NAMESPACE/NAME, or the VolumeSnapshotContent, NAME; empty if nobody said."""
RESOURCE_RDMA = "kube3fs.io/rdma"

_DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_OBJECT_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,126}[a-z0-9])?")
"""Ids that the kubelet makes for inline volumes are longer than a DNS label: csi- and 64 hex digits."""
_MAX_CSI_ID_BYTES = 128  # CSI spec, "Size Limits"
_SHOWN = 300
"""Characters of a path that an error repeats."""
MAX_PATH_BYTES = 4095  # PATH_MAX less its NUL


def object_name(csi_name: str) -> str:
    """The id, and name of the object, for the `name` of a CreateVolume or CreateSnapshot request.

    The name itself where it can be one (`pvc-<uid>`), a digest of it otherwise: CSI allows any string.
    """
    if not csi_name:
        raise InvalidArgument("name is empty; give the volume or snapshot a name")
    if len(csi_name.encode()) > _MAX_CSI_ID_BYTES:
        raise InvalidArgument(f"name is longer than {_MAX_CSI_ID_BYTES} bytes; shorten it")
    if _OBJECT_NAME.fullmatch(csi_name):
        return csi_name
    return "h-" + hashlib.sha256(csi_name.encode()).hexdigest()[:40]


def checked_id(csi_id: str, what: str = "volume") -> str:
    """`csi_id` if it is one at all. Whether we made it is for `is_object_name` and a look-up to say."""
    if not csi_id:
        raise InvalidArgument(f"{what} id is empty; set it to the id that Create{what.capitalize()} answered")
    if len(csi_id.encode()) > _MAX_CSI_ID_BYTES:
        raise InvalidArgument(f"{what} id is longer than {_MAX_CSI_ID_BYTES} bytes; no {what} of ours is")
    if "/" in csi_id or csi_id in (".", "..") or not csi_id.isprintable():
        raise InvalidArgument(f"{what} id {csi_id!r} has characters that no {what} id of ours has")
    return csi_id


def is_object_name(csi_id: str) -> bool:
    """Whether `csi_id` can be one of ours, hence safe as the name of a file and of an object."""
    return _OBJECT_NAME.fullmatch(csi_id) is not None


def parse_cluster(value: str) -> tuple[str, str]:
    """Namespace and name from the value of `csi.kube3fs.io/cluster`."""
    namespace, slash, name = value.partition("/")
    if not slash or not all(_DNS_LABEL.fullmatch(part) for part in (namespace, *name.split("."))):
        raise InvalidArgument(
            f"{PARAMETER_CLUSTER} is {value[:_MAX_CSI_ID_BYTES]!r}; "
            "set it to NAMESPACE/NAME of a StorageCluster, such as storage/fast"
        )
    return namespace, name


def is_switched(value: str, what: str) -> bool:
    """The value of a switch of a user."""
    if value not in ("true", "false"):
        raise InvalidArgument(f'{what} is {value[:100]!r}; set it to "true" or "false", or leave it out')
    return value == "true"


def checked_path(path: str, below: Path, field: str) -> Path:
    """`path` where it is absolute, normal and strictly below `below`. Symlinks are not looked at here."""
    found = Path(path)
    if not path:
        raise InvalidArgument(f"{field} is empty; set it to a path below {below}")
    if len(path.encode()) > MAX_PATH_BYTES or "\0" in path:
        raise InvalidArgument(f"{field} is longer than a path can be or contains a NUL")
    if ".." in found.parts or found == below or not found.is_relative_to(below):
        raise InvalidArgument(
            f"{field} {path[:_SHOWN]!r} is not a path below {below}; kubelet's folder is set by --kubelet-dir"
        )
    return found


def pods_in_words(users: Sequence[str], most: int = 5) -> str:
    """Pods by name: `pod a/b`, `pods a/b, a/c and 7 more`."""
    more = f" and {len(users) - most} more" if len(users) > most else ""
    return f"pod{'s' if len(users) > 1 else ''} {', '.join(users[:most])}{more}"
