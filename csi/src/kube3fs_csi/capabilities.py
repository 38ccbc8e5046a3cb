"""Which volume capabilities the driver offers, for controller and node alike."""

from collections.abc import Iterable

from kube3fs_csi.api import csi_pb2
from kube3fs_csi.node.mounts import ALLOWED_OPTIONS, FUSE_TYPE
from kube3fs_csi.serving.errors import InvalidArgument

_Mode = csi_pb2.VolumeCapability.AccessMode
OFFERED_MODES = (
    _Mode.SINGLE_NODE_WRITER,
    _Mode.SINGLE_NODE_READER_ONLY,
    _Mode.SINGLE_NODE_SINGLE_WRITER,
    _Mode.SINGLE_NODE_MULTI_WRITER,
)


def check(capabilities: Iterable[csi_pb2.VolumeCapability]) -> None:
    """Raises InvalidArgument, and says what to ask for instead, unless all `capabilities` are offered."""
    asked = list(capabilities)
    if not asked:
        raise InvalidArgument("volume capabilities are missing; ask for access type mount and an access mode")
    for capability in asked:
        check_one(capability)


def check_one(capability: csi_pb2.VolumeCapability) -> None:
    """The same for one of them."""
    if capability.WhichOneof("access_type") is None:
        raise InvalidArgument("the volume capability has no access type; ask for mount")
    if capability.HasField("block"):
        raise InvalidArgument("block volumes are not offered; use volumeMode: Filesystem")
    mode = capability.access_mode.mode
    if mode not in OFFERED_MODES:
        name = _Mode.Mode.Name(mode) if mode in _Mode.Mode.values() else str(mode)
        raise InvalidArgument(
            f"access mode {name} is not offered: a volume lies on one node; "
            "use ReadWriteOnce, with which all pods of that node may share it, or ReadWriteOncePod"
        )
    fs_type = capability.mount.fs_type
    if fs_type not in ("", FUSE_TYPE):
        raise InvalidArgument(
            f"file system type {fs_type[:100]!r} is not offered; leave it out, or use {FUSE_TYPE}"
        )
    mount_flags(capability)


def mount_flags(capability: csi_pb2.VolumeCapability) -> int:
    """Flags of mount(2) for the mountOptions."""
    flags = 0
    for option in capability.mount.mount_flags:
        if option not in ALLOWED_OPTIONS:
            raise InvalidArgument(
                f"mount option {option[:100]!r} is not allowed, only {', '.join(sorted(ALLOWED_OPTIONS))}"
            )
        flags |= ALLOWED_OPTIONS[option]
    return flags
