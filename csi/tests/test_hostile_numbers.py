"""Every place where a user writes a number, with numbers that nobody should convert."""

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from kube3fs_csi import capabilities, cli
from kube3fs_csi.api import csi_pb2
from kube3fs_csi.controller import pages, requests
from kube3fs_csi.names import checked_id, object_name
from kube3fs_csi.plugin import publish_request
from kube3fs_csi.plugin.publish_request import Limits
from kube3fs_csi.serving.errors import CsiError

HOSTILE = [
    "1e99999999", "1e-99999999", "9" * 5000, "9" * 1_000_000, "-1", "0x10", "NaN", "Infinity", "-Infinity",
    "\u0661\u0662", "\uff11", "\u00b2", "1_000", " 1", "1 ", "1\n", "1Ki1", "", "1.5.5", "1e", "0b1",
    str(2**63), str(2**64), "1e400", "-0x1", "0" * 5000, "1" + "." * 5000, "\0", "1\0",
]  # fmt: skip
IDS = [f"{text[:12]!a}-{len(text)}" for text in HOSTILE]
LIMITS = Limits(Path("/var/lib/kubelet"), 1 << 62, Path("/client"))
_Mode = csi_pb2.VolumeCapability.AccessMode


def publish(group: str = "", mode: int = _Mode.SINGLE_NODE_WRITER, **attributes: str) -> None:
    """A NodePublishVolume of an inline volume with such attributes."""
    context = {"csi.storage.k8s.io/ephemeral": "true", "csi.storage.k8s.io/pod.uid": "uid"}
    context |= {f"csi.kube3fs.io/{key}": value for key, value in attributes.items()}
    capability = csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(volume_mount_group=group),
        access_mode=_Mode(mode=mode),
    )
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id="csi-1",
        target_path="/var/lib/kubelet/pods/uid/mount",
        volume_capability=capability,
        volume_context=context,
    )
    publish_request.parse(request, LIMITS)


ENTRIES: dict[str, Callable[[str], object]] = {
    "size of shared memory": lambda text: publish(kind="shm", size=text),
    "size of scratch": lambda text: publish(kind="scratch", cluster="a/b", size=text),
    "huge": lambda text: publish(kind="shm", size="8Mi", huge=text or "-"),
    "passthrough": lambda text: publish(kind="scratch", cluster="a/b", size="8Mi", passthrough=text),
    "cluster": lambda text: publish(kind="scratch", size="8Mi", cluster=f"/{text}"),
    "group": lambda text: publish(kind="shm", size="8Mi", group=text or "-"),
    "parameter of a StorageClass": lambda text: requests.cluster_of({"csi.kube3fs.io/cluster": text}),
    "token of a page": lambda text: pages.page({}, 0, text or "-"),
}


@pytest.mark.parametrize("text", HOSTILE, ids=IDS)
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES.keys())
def test_a_hostile_number_is_refused_at_once(entry: Callable[[str], object], text: str) -> None:
    """In no time, with a code that says whose mistake it is and a short sentence that says what to write."""
    start = time.monotonic()
    with pytest.raises(CsiError) as refused:
        entry(text)
    assert time.monotonic() - start < 1
    assert refused.value.code is not grpc.StatusCode.INTERNAL
    assert 20 < len(str(refused.value)) < 1000


@pytest.mark.parametrize("text", ["a" * 129, "a" * 1_000_000], ids=["129", "a million"])
@pytest.mark.parametrize("check", [checked_id, object_name])
def test_a_long_name_is_not_repeated(check: Callable[[str], str], text: str) -> None:
    """What is too long is refused in a sentence that is not."""
    with pytest.raises(CsiError) as refused:
        check(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize(
    ("required", "limit"), [(-1, 0), (0, -1), (2**63 - 1, 0), (-(2**63), 0), (2, 1)], ids=str
)
def test_a_capacity_range_is_checked(required: int, limit: int) -> None:
    """CSI sends int64: negative and absurd ones are refused, for new volumes and for growing ones."""
    with pytest.raises(CsiError) as refused:
        requests.capacity(csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit))
    assert refused.value.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)


@pytest.mark.parametrize("mode", [99, -1, 2**31 - 1])
def test_an_access_mode_of_a_newer_csi_is_refused(mode: int) -> None:
    """A number without a name is no defect of ours."""
    with pytest.raises(CsiError, match="is not offered"):
        capabilities.check_one(
            csi_pb2.VolumeCapability(
                mount=csi_pb2.VolumeCapability.MountVolume(), access_mode=_Mode(mode=mode)
            )
        )


@pytest.mark.parametrize(
    "option",
    ["--max-shm-bytes", "--max-volumes", "--rdma-shares", "--health-port", "--rdma-devices"],
)
@pytest.mark.parametrize(
    "value", ["9" * 5000, str(2**64), "-5", "1e9", "(" * 20_000], ids=lambda text: text[:5]
)
def test_a_wrong_chart_value_ends_the_start_with_its_name(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program says which option it is, and ends with status 2."""
    if option == "--rdma-devices" and not value.startswith("("):
        return  # it is a regular expression
    try:
        status = cli.main(["node", "--node-name=n", f"{option}={value}"])
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert option in capsys.readouterr().err
