"""RDMA devices: shapes of machines as data, and the device plugin against a stand-in for the kubelet."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from csikit.waiting import eventually
from hypothesis import given
from hypothesis import strategies as st

from kube3fs_csi.api import deviceplugin_pb2 as pb
from kube3fs_csi.api import deviceplugin_pb2_grpc
from kube3fs_csi.devices import cdi, discovery, servicer, sources
from kube3fs_csi.devices.discovery import RawDevice, RawPort
from kube3fs_csi.serving.server import serving

LINK_LOCAL = bytes.fromhex("fe80000000000000506b4bfffe4fb2d1")
MAPPED = bytes.fromhex("00000000000000000000ffff0a000001")


def port(number: int = 1, state: str = "ACTIVE", layer: str = "InfiniBand", gids: Any = ()) -> RawPort:
    return RawPort(number, state, layer, gids)


def nic(name: str, uverbs: str, numa_node: int = 0, *ports: RawPort) -> RawDevice:
    return RawDevice(name, uverbs, numa_node, ports or (port(),))


FOUR = [nic(f"mlx5_{n}", f"uverbs{n}", n // 2) for n in range(4)]


def test_four_cards_are_four_devices() -> None:
    """Each card is a device, healthy, with its NUMA node."""
    found = discovery.offered(FOUR)
    assert [(one.name, one.uverbs, one.healthy, one.numa_node) for one in found] == [
        ("mlx5_0", "uverbs0", True, 0),
        ("mlx5_1", "uverbs1", True, 0),
        ("mlx5_2", "uverbs2", True, 1),
        ("mlx5_3", "uverbs3", True, 1),
    ]
    assert discovery.status(found, 4, "", "").message == ""


def test_a_bond_is_one_device() -> None:
    """Two ports bonded by the driver show up as one device with one port."""
    (found,) = discovery.offered([nic("mlx5_bond_0", "uverbs0", 0, port(layer="Ethernet"))])
    assert found.healthy
    assert [one.number for one in found.status.ports] == [1]


def test_a_port_that_is_down() -> None:
    """A device without an active port is unhealthy, and the status names it; one active port will do."""
    down = nic("mlx5_0", "uverbs0", 0, port(state="DOWN"))
    half = nic("mlx5_1", "uverbs1", 0, port(1, "DOWN"), port(2))
    found = discovery.offered([down, half])
    assert [one.healthy for one in found] == [False, True]
    assert discovery.status(found, 2, "", "").message == "no active port: mlx5_0"


def test_gids_say_their_kind() -> None:
    """RoCE v1 and v2 rows, IPv4 written as such, rows that hold nothing left out."""
    rows = [
        (0, LINK_LOCAL, "RoCE v1"),
        (1, LINK_LOCAL, "RoCE v2"),
        (3, MAPPED, "RoCE v2"),
        (4, bytes(16), ""),
    ]
    (found,) = discovery.offered([nic("mlx5_0", "uverbs0", 0, port(layer="Ethernet", gids=rows))])
    assert found.status.ports[0].gids == [
        "0 RoCE v1 fe80::506b:4bff:fe4f:b2d1",
        "1 RoCE v2 fe80::506b:4bff:fe4f:b2d1",
        "3 RoCE v2 ::ffff:10.0.0.1",
    ]


def test_a_filter_offers_some_only() -> None:
    """Names that do not match, and devices without a uverbs, are not offered; the status says so."""
    assert [one.name for one in discovery.offered(FOUR, "mlx5_[02]")] == ["mlx5_0", "mlx5_2"]
    assert discovery.offered([RawDevice("siw0", "", -1, (port(),))]) == []
    assert "none of 4 RDMA devices matches" in discovery.status([], 4, "bnxt.*", "").message


def test_a_node_without_devices_says_why() -> None:
    """No device, and a failure to look, are two sentences."""
    assert "no RDMA device" in discovery.status([], 0, "", "").message
    assert discovery.status([], 0, "", "verbs broke").message == "verbs broke"


def test_a_machine_without_numa_gives_no_hint() -> None:
    """NUMA node -1 means unknown."""
    assert discovery.offered([nic("rxe0", "uverbs0", -1)])[0].numa_node is None


@pytest.mark.parametrize(
    ("size", "must", "shares", "wanted"),
    [
        pytest.param(2, [], 1, ["mlx5_0", "mlx5_1"], id="two of one NUMA node"),
        pytest.param(2, ["mlx5_2"], 1, ["mlx5_2", "mlx5_3"], id="beside the one that must be"),
        pytest.param(2, [], 2, ["mlx5_0-0", "mlx5_1-0"], id="shares of different devices"),
        pytest.param(9, [], 1, ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3"], id="no more than there are"),
    ],
)
def test_preferred_allocation(size: int, must: list[str], shares: int, wanted: list[str]) -> None:
    """As many different devices as can be, of as few NUMA nodes as can be."""
    devices = discovery.offered(FOUR)
    available = [share for one in devices for share in discovery.share_ids(one.name, shares)]
    assert discovery.prefer(available, must, size, devices, shares) == wanted


@given(st.data())
def test_preferred_allocation_answers_what_was_asked(data: st.DataObject) -> None:
    """Whatever is asked, the answer has that many available shares, and those that must be."""
    shares = data.draw(st.integers(1, 3))
    devices = discovery.offered(FOUR)
    every = [share for one in devices for share in discovery.share_ids(one.name, shares)]
    available = data.draw(st.lists(st.sampled_from(every), unique=True, min_size=1))
    size = data.draw(st.integers(1, len(available)))
    must = data.draw(st.lists(st.sampled_from(available), unique=True, max_size=size))
    chosen = discovery.prefer(available, must, size, devices, shares)
    assert len(chosen) == len(set(chosen)) == size
    assert set(must) <= set(chosen) <= set(available)


def fake_sysfs(folder: Path) -> Path:
    """A sysfs with one RoCE card, as Linux lays it out."""
    device = folder / "class/infiniband/mlx5_0"
    files = {
        "device/numa_node": "1",
        "ports/1/state": "4: ACTIVE",
        "ports/1/link_layer": "Ethernet",
        "ports/1/gids/0": "fe80:0000:0000:0000:506b:4bff:fe4f:b2d1",
        "ports/1/gids/1": "0000:0000:0000:0000:0000:0000:0000:0000",
        "ports/1/gid_attrs/types/0": "RoCE v2",
    }
    for name, content in files.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_text(f"{content}\n")
    verbs = folder / "class/infiniband_verbs/uverbs3"
    verbs.mkdir(parents=True)
    (verbs / "ibdev").write_text("mlx5_0\n")
    return folder


def test_sysfs_is_read(tmp_path: Path) -> None:
    """A card in sysfs is found with its uverbs, NUMA node, port and GID; an empty sysfs has none."""
    found, trouble = sources.read(fake_sysfs(tmp_path))
    assert trouble == ""
    assert found == [
        RawDevice("mlx5_0", "uverbs3", 1, [RawPort(1, "ACTIVE", "Ethernet", [(0, LINK_LOCAL, "RoCE v2")])])
    ]
    assert sources.read(tmp_path / "empty") == ([], "")


def test_cdi_specs_come_and_go(tmp_path: Path) -> None:
    """The spec names the device files of each device, and is removed with the last one."""
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    (tmp_path / "dev/infiniband/rdma_cm").touch()
    cdi.write(tmp_path / "cdi", discovery.offered(FOUR[:1]), tmp_path / "dev")
    spec = json.loads((tmp_path / "cdi" / cdi.FILE).read_text())
    assert spec["kind"] == "kube3fs.io/rdma"
    (device,) = spec["devices"]
    assert [node["path"] for node in device["containerEdits"]["deviceNodes"]] == [
        "/dev/infiniband/uverbs0",
        "/dev/infiniband/rdma_cm",
    ]
    cdi.write(tmp_path / "cdi", [], tmp_path / "dev")
    assert list((tmp_path / "cdi").iterdir()) == []


class Kubelet(deviceplugin_pb2_grpc.RegistrationServicer):
    """The side that device plugins register with."""

    def __init__(self) -> None:
        self.requests: list[pb.RegisterRequest] = []

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.Empty:  # noqa: N802
        self.requests.append(request)
        return pb.Empty()


@contextlib.asynccontextmanager
async def registered(folder: Path, plugin: servicer.RdmaPlugin) -> Any:
    kubelet = Kubelet()
    add: Callable[[grpc.aio.Server], None] = lambda server: (  # noqa: E731
        deviceplugin_pb2_grpc.add_RegistrationServicer_to_server(kubelet, server)
    )
    running = asyncio.create_task(servicer.run(plugin, folder))
    try:
        async with serving(folder / "kubelet.sock", add):
            await eventually(lambda: kubelet.requests)
            async with grpc.aio.insecure_channel(f"unix://{folder / servicer.SOCKET}") as channel:
                yield kubelet, deviceplugin_pb2_grpc.DevicePluginStub(channel), add
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_the_plugin_registers_lists_and_allocates(tmp_path: Path) -> None:
    """The kubelet learns of the resource, sees devices and their changes, and gets CDI names."""
    plugin = servicer.RdmaPlugin()
    await plugin.set(discovery.offered(FOUR[:2]))
    async with registered(tmp_path, plugin) as (kubelet, stub, _):
        assert kubelet.requests[0].resource_name == "kube3fs.io/rdma"
        stream = stub.ListAndWatch(pb.Empty())
        first = await stream.read()
        assert [(one.ID, one.health, one.topology.nodes[0].ID) for one in first.devices] == [
            ("mlx5_0", "Healthy", 0),
            ("mlx5_1", "Healthy", 0),
        ]
        await plugin.set(discovery.offered([nic("mlx5_0", "uverbs0", 0, port(state="DOWN"))]))
        assert [one.health for one in (await stream.read()).devices] == ["Unhealthy"]
        asked = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=["mlx5_0"])])
        answer = await stub.Allocate(asked)
        assert [one.name for one in answer.container_responses[0].cdi_devices] == ["kube3fs.io/rdma=mlx5_0"]
        asked.container_requests[0].devices_ids[0] = "mlx5_9"
        with pytest.raises(grpc.aio.AioRpcError, match="mlx5_9 is gone"):
            await stub.Allocate(asked)
        stream.cancel()


async def test_the_plugin_registers_with_a_restarted_kubelet(tmp_path: Path) -> None:
    """A new kubelet has a new socket: the plugin registers with it as well."""
    async with registered(tmp_path, servicer.RdmaPlugin()) as (kubelet, _, add):
        (tmp_path / "kubelet.sock").unlink()
        async with serving(tmp_path / "kubelet.sock", add):
            await eventually(lambda: len(kubelet.requests) == 2)
