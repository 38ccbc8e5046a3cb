"""Bad input: the code that the CSI spec names, and a sentence that says what to change."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube3fs_crds import ClusterRef, StorageNode
from kube3fs_csi import names
from kube3fs_csi.api import csi_pb2
from kube3fs_csi.controller import pages, placement, requests
from kube3fs_csi.plugin import publish_request
from kube3fs_csi.plugin.publish_request import Limits
from kube3fs_csi.serving.errors import BY_CODE, CsiError, InvalidArgument, OutOfRange

GIB = 1 << 30
LIMITS = Limits(Path("/var/lib/kubelet"), 8 * GIB, Path("/client"))
TARGET = "/var/lib/kubelet/pods/uid/volumes/kubernetes.io~csi/data/mount"
INLINE = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.uid": "uid"}
SHM = {**INLINE, "csi.kube3fs.io/kind": "shm", "csi.kube3fs.io/size": "1Gi"}
SCRATCH = {**SHM, "csi.kube3fs.io/kind": "scratch", "csi.kube3fs.io/cluster": "storage/fast"}
PERSISTENT = {"csi.kube3fs.io/cluster": "storage/fast"}

Mode = csi_pb2.VolumeCapability.AccessMode


def capability(mode: int = Mode.SINGLE_NODE_WRITER, **mount: Any) -> csi_pb2.VolumeCapability:
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(**mount), access_mode=Mode(mode=mode)
    )


def publish(**changes: Any) -> csi_pb2.NodePublishVolumeRequest:
    fields = {
        "volume_id": "pvc-1",
        "target_path": TARGET,
        "volume_capability": capability(),
        "volume_context": PERSISTENT,
    }
    return csi_pb2.NodePublishVolumeRequest(**(fields | changes))


def test_a_good_request_is_understood() -> None:
    """Every field of a request for shared memory ends up where it belongs."""
    want = publish_request.parse(
        publish(
            volume_context={**SHM, "csi.kube3fs.io/huge": "within_size", "csi.storage.k8s.io/pod.name": "p"}
        ),
        LIMITS,
    )
    assert (want.kind, want.size, want.huge, want.pod.key, want.pod.name) == (
        "shm", GIB, "within_size", "uid", "p",
    )  # fmt: skip


def test_passthrough_can_be_switched_off() -> None:
    """A scratch volume may ask for plain FUSE; without a word it has passthrough."""
    plain = publish(volume_context={**SCRATCH, "csi.kube3fs.io/passthrough": "false"})
    assert not publish_request.parse(plain, LIMITS).passthrough
    assert publish_request.parse(publish(volume_context=SCRATCH), LIMITS).passthrough


def test_links_are_orders_only_where_the_storage_class_says_so() -> None:
    """A volume takes orders to rename only with the attribute, which CreateVolume passes on."""
    asked = publish(volume_context={**PERSISTENT, "csi.kube3fs.io/orders": "true"})
    assert publish_request.parse(asked, LIMITS).orders
    for context in (PERSISTENT, SCRATCH, {**PERSISTENT, "csi.kube3fs.io/orders": "false"}):
        assert not publish_request.parse(publish(volume_context=context), LIMITS).orders


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param({"volume_id": ""}, "volume id is empty", id="no volume id"),
        pytest.param({"volume_id": "a/b"}, "characters that no volume id", id="slash in the id"),
        pytest.param({"volume_id": ".."}, "characters that no volume id", id="dots as the id"),
        pytest.param({"volume_id": "x" * 1024}, "longer than 128 bytes", id="id of 1 kB"),
        pytest.param({"target_path": ""}, "target_path is empty", id="no target"),
        pytest.param(
            {"target_path": "/etc/passwd"}, "not a path below /var/lib/kubelet", id="foreign target"
        ),
        pytest.param({"target_path": "/var/lib/kubelet/../x"}, "not a path below", id="target that climbs"),
        pytest.param({"target_path": "pods/x"}, "not a path below", id="relative target"),
        pytest.param(
            {"target_path": "/var/lib/kubelet/" + "x" * 5000}, "longer than a path", id="long target"
        ),
        pytest.param({"volume_capability": None}, "volume_capability is missing", id="no capability"),
        pytest.param(
            {"volume_capability": capability(Mode.MULTI_NODE_MULTI_WRITER)},
            "use ReadWriteOnce",
            id="many nodes",
        ),
        pytest.param(
            {"volume_capability": capability(fs_type="ext4")}, "is not offered", id="file system type"
        ),
        pytest.param(
            {"volume_capability": capability(mount_flags=["suid"])}, "is not allowed", id="mount option"
        ),
        pytest.param(
            {"volume_capability": capability(volume_mount_group="wheel")},
            "number of a group",
            id="group name",
        ),
        pytest.param({"volume_context": {}}, "set it to NAMESPACE/NAME", id="no cluster"),
        pytest.param(
            {"volume_context": {"csi.kube3fs.io/cluster": "a/b/c"}}, "NAMESPACE/NAME", id="odd cluster"
        ),
        pytest.param(
            {"volume_context": {**PERSISTENT, "color": "red"}}, "no attribute 'color'", id="attribute"
        ),
        pytest.param({"volume_context": INLINE}, "set it in the inline volume to", id="no kind"),
        pytest.param(
            {"volume_context": {**SHM, "csi.kube3fs.io/kind": "disk"}}, "shm, client, scratch", id="odd kind"
        ),
        pytest.param(
            {"volume_context": {**SHM, "csi.kube3fs.io/size": "lots"}}, "such as 8Gi", id="no quantity"
        ),
        pytest.param({"volume_context": {**SHM, "csi.kube3fs.io/size": "0"}}, "at least", id="size 0"),
        pytest.param(
            {"volume_context": {**SHM, "csi.kube3fs.io/size": "-1Gi"}}, "no quantity", id="negative"
        ),
        pytest.param(
            {"volume_context": {**SHM, "csi.kube3fs.io/size": "64Ki"}}, "at least 1048576", id="too small"
        ),
        pytest.param({"volume_context": {**SHM, "csi.kube3fs.io/huge": "yes"}}, "within_size", id="odd huge"),
        pytest.param(
            {"volume_context": {**SCRATCH, "csi.kube3fs.io/passthrough": "no"}},
            'set it to "false"',
            id="odd passthrough",
        ),
        pytest.param(
            {"volume_context": {**PERSISTENT, "csi.kube3fs.io/orders": "1"}},
            '"true" or "false"',
            id="odd orders",
        ),
        pytest.param(
            {"volume_context": {**SHM, "csi.storage.k8s.io/pod.uid": "../x"}}, "no uid", id="uid that climbs"
        ),
    ],
)
def test_bad_publish_requests(changes: dict[str, Any], sentence: str) -> None:
    """INVALID_ARGUMENT, with what to change."""
    with pytest.raises(InvalidArgument, match=sentence):
        publish_request.parse(publish(**changes), LIMITS)


def test_too_much_shared_memory_is_out_of_range() -> None:
    """More than the node's limit is OUT_OF_RANGE."""
    with pytest.raises(OutOfRange, match="larger node"):
        publish_request.parse(publish(volume_context={**SHM, "csi.kube3fs.io/size": "9Gi"}), LIMITS)


@given(
    st.dictionaries(st.text(max_size=30), st.text(max_size=30)), st.text(max_size=200), st.text(max_size=200)
)
def test_no_publish_request_is_a_defect(context: dict[str, str], volume_id: str, target: str) -> None:
    """Whatever is asked for is understood or refused with a sentence; nothing else is raised."""
    request = publish(volume_context=SHM | context, volume_id=volume_id, target_path=target)
    refused = None
    try:
        publish_request.parse(request, LIMITS)
    except CsiError as error:
        refused = error
    assert refused is None or (refused.code is not grpc.StatusCode.INTERNAL and str(refused))


def create(**changes: Any) -> csi_pb2.CreateVolumeRequest:
    fields = {"name": "pvc-1", "volume_capabilities": [capability()], "parameters": PERSISTENT}
    return csi_pb2.CreateVolumeRequest(**(fields | changes))


def size(required: int, limit: int = 0) -> csi_pb2.CapacityRange:
    return csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        pytest.param({"name": ""}, "INVALID_ARGUMENT", "name is empty", id="no name"),
        pytest.param({"name": "x" * 129}, "INVALID_ARGUMENT", "shorten it", id="long name"),
        pytest.param({"volume_capabilities": []}, "INVALID_ARGUMENT", "are missing", id="no capabilities"),
        pytest.param({"parameters": {}}, "INVALID_ARGUMENT", "set it to NAMESPACE/NAME", id="no cluster"),
        pytest.param(
            {"parameters": {**PERSISTENT, "tier": "gold"}},
            "INVALID_ARGUMENT",
            "unknown parameter",
            id="parameter",
        ),
        pytest.param(
            {"parameters": {**PERSISTENT, "csi.kube3fs.io/orders": "yes"}},
            "INVALID_ARGUMENT",
            '"true" or "false"',
            id="odd orders",
        ),
        pytest.param(
            {"mutable_parameters": {"a": "b"}}, "INVALID_ARGUMENT", "remove the Volume", id="mutable"
        ),
        pytest.param({"capacity_range": size(-1)}, "INVALID_ARGUMENT", "more than 0", id="negative size"),
        pytest.param({"capacity_range": size(2, 1)}, "INVALID_ARGUMENT", "raise it", id="limit below size"),
        pytest.param({"capacity_range": size(2**63 - 1)}, "OUT_OF_RANGE", "or less", id="absurd size"),
    ],
)
def test_bad_create_requests(changes: dict[str, Any], code: str, sentence: str) -> None:
    """The code of the CSI spec, with what to change."""
    with pytest.raises(CsiError, match=sentence) as refused:
        requests.wanted_volume(create(**changes))
    assert refused.value.code.name == code


def test_topology_keeps_the_schedulers_order() -> None:
    """Preferred nodes come first; what is not allowed is left out; another key is refused."""
    topology = csi_pb2.TopologyRequirement(
        requisite=[csi_pb2.Topology(segments={names.TOPOLOGY_KEY: name}) for name in ("a", "b")],
        preferred=[csi_pb2.Topology(segments={names.TOPOLOGY_KEY: name}) for name in ("b", "c")],
    )
    assert requests.nodes_of(topology) == ("b", "a")
    with pytest.raises(InvalidArgument, match="the only key"):
        requests.nodes_of(csi_pb2.TopologyRequirement(requisite=[csi_pb2.Topology(segments={"zone": "z"})]))


def node(name: str, capacity: int, allocated: int, *, ready: bool = True) -> StorageNode:
    share = {"namespace": "storage", "name": "fast", "path": "/data", "ready": ready, "message": "no disk"}
    room = {"capacityBytes": capacity, "availableBytes": capacity - allocated, "allocatedBytes": allocated}
    return StorageNode.model_validate({"metadata": {"name": name}, "status": {"clusters": [share | room]}})


FAST = ClusterRef(namespace="storage", name="fast")


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [
        pytest.param([], "b", id="without a choice the node with the most room"),
        pytest.param(["a", "b"], "a", id="the scheduler's first if it fits"),
        pytest.param(["c", "b"], "b", id="the next if the first is full"),
    ],
)
def test_placement(allowed: list[str], wanted: str) -> None:
    """A volume goes where the scheduler wants it and where it fits."""
    nodes = [node("a", 10, 5), node("b", 10, 0), node("c", 10, 10)]
    assert placement.choose(nodes, FAST, 4, allowed) == wanted


def test_room_is_what_is_free_less_what_is_promised() -> None:
    """Of every cluster on that file system, as its node counts it; an older node plugin does not count."""
    share = node("a", 100, 10).status.clusters[0]
    assert placement.room(share) == 90
    assert placement.room(share.model_copy(update={"reserved_bytes": 70})) == 20
    assert placement.room(share.model_copy(update={"reserved_bytes": 700})) == 0


@pytest.mark.parametrize(
    ("nodes", "allowed", "sentence"),
    [
        pytest.param([node("a", 10, 8)], ["a"], "at most 2 are left", id="full"),
        pytest.param([node("a", 10, 0, ready=False)], ["a"], "no disk", id="not ready"),
        pytest.param([node("a", 10, 0)], ["b"], "not served on b", id="elsewhere"),
    ],
)
def test_no_place_is_explained(nodes: list[StorageNode], allowed: list[str], sentence: str) -> None:
    """RESOURCE_EXHAUSTED, so that the scheduler tries another node, and the reason."""
    with pytest.raises(CsiError, match=sentence) as refused:
        placement.choose(nodes, FAST, 4, allowed)
    assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_node_of_which_nobody_knows_gets_no_volume() -> None:
    """Its plugin is silent: what it reported last is no room."""
    silent = {
        "type": "Ready", "status": "Unknown", "reason": "NodePluginSilent", "message": "it is silent",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    lost = node("a", 10, 0)
    body = lost.as_object()
    body["status"]["conditions"] = [silent]
    lost = StorageNode.model_validate(body)
    assert placement.choose([lost, node("b", 10, 5)], FAST, 4, []) == "b"
    assert [placement.room(share) for share in placement.shares(lost)] == [0]
    with pytest.raises(CsiError, match="it is silent"):
        placement.choose([lost], FAST, 4, ["a"])


@given(st.sets(st.text(alphabet="abc", min_size=1, max_size=4)), st.integers(1, 5))
def test_pages_show_everything_once(items: set[str], most: int) -> None:
    """Following the tokens gives every item once, in order, and no page is too long."""
    seen: list[str] = []
    token = ""
    while True:
        found, token = pages.page({item: item for item in items}, most, token)
        assert len(found) <= most
        seen += found
        if not token:
            break
    assert seen == sorted(items)


@given(st.text(min_size=1, max_size=40))
def test_object_names_can_be_ids(name: str) -> None:
    """Whatever a volume is called, its id is safe as the name of a file or object, and the same again."""
    if len(name.encode()) <= 128:
        made = names.object_name(name)
        assert names.is_object_name(made)
        assert names.object_name(made) == made == names.object_name(name)


def test_every_code_has_its_error() -> None:
    """What a node writes into a status comes back as the same code."""
    assert all(kind.code.name == code for code, kind in BY_CODE.items())
