"""`make bench-csi`: what mounting costs. The driver's two processes and the real usrbiod, without a kubelet.

Prints NodePublish+Unpublish (a volume and its pod's shared memory) with few and with many volumes mounted,
CreateVolume until its answer, and the node plugin's memory and idle CPU.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from csikit.driver import CLUSTER, Driver, running

from kube3fs_csi.api import csi_pb2, csi_pb2_grpc

MIB = 1 << 20
MOUNTED = 100
IDLE_SECONDS = 10.0
_POD, _NAMESPACE = "trainer", "default"
CAPABILITY = csi_pb2.VolumeCapability(
    mount=csi_pb2.VolumeCapability.MountVolume(),
    access_mode=csi_pb2.VolumeCapability.AccessMode(mode="SINGLE_NODE_WRITER"),
)


class Calls:
    """The kubelet's and the provisioner's side."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._node: Any = csi_pb2_grpc.NodeStub(grpc.aio.insecure_channel(f"unix://{driver.node_socket}"))
        self._controller: Any = csi_pb2_grpc.ControllerStub(
            grpc.aio.insecure_channel(f"unix://{driver.controller_socket}")
        )

    async def create(self, name: str) -> None:
        """Makes a volume."""
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=8 * MIB),
            volume_capabilities=[CAPABILITY],
            parameters={"csi.kube3fs.io/cluster": CLUSTER},
        )
        await self._controller.CreateVolume(request, timeout=30)

    def make_folder(self, pod: str) -> None:
        """Makes what the kubelet makes before it calls: the folder of the volume."""
        self._target(pod).parent.mkdir(parents=True)

    async def publish(self, pod: str) -> None:
        """Mounts the volume `bench` for a pod."""
        context = {
            "csi.kube3fs.io/cluster": CLUSTER,
            "csi.storage.k8s.io/pod.uid": pod,
            "csi.storage.k8s.io/pod.name": _POD,
            "csi.storage.k8s.io/pod.namespace": _NAMESPACE,
        }
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id="bench",
            target_path=str(self._target(pod)),
            volume_capability=CAPABILITY,
            volume_context=context,
        )
        await self._node.NodePublishVolume(request, timeout=30)

    async def unpublish(self, pod: str) -> None:
        """Takes it away."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id="bench", target_path=str(self._target(pod)))
        await self._node.NodeUnpublishVolume(request, timeout=30)

    def _target(self, pod: str) -> Path:
        return self._driver.kubelet / "pods" / pod / "volumes/kubernetes.io~csi/bench/mount"


async def timed(work: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds that `work` took."""
    start = time.perf_counter()
    await work()
    return (time.perf_counter() - start) * 1000


def row(what: str, samples: list[float], target: str = "") -> None:
    """One line of the table."""
    ordered = sorted(samples)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    print(f"{what:<52} {statistics.median(samples):8.1f} {p99:8.1f}   {target}")


async def rounds(calls: Calls, count: int, start: int) -> list[float]:
    """Publishes and unpublishes `count` times, one after another."""
    samples = []
    for number in range(start, start + count):

        async def once(pod: str = f"pod-{number}") -> None:
            await calls.publish(pod)
            await calls.unpublish(pod)

        calls.make_folder(f"pod-{number}")
        samples.append(await timed(once))
    return samples


async def bench(driver: Driver, count: int) -> None:
    """All of it."""
    calls = Calls(driver)
    # The driver asks whether the pod has a user namespace of its own.
    await driver.api.put("pods", {"metadata": {"namespace": _NAMESPACE, "name": _POD}, "spec": {}})
    await calls.create("bench")
    idle = driver.rss("node")
    print(f"{'':<52} {'p50 ms':>8} {'p99 ms':>8}   target")
    created = [await timed(partial(calls.create, f"volume-{number}")) for number in range(50)]
    row("CreateVolume, called to answered", created)
    row("NodePublish+Unpublish, nothing else mounted", await rounds(calls, count, 0), "p50 10, p99 50")
    for number in range(MOUNTED):
        calls.make_folder(f"mounted-{number}")
        await calls.publish(f"mounted-{number}")
    row(
        f"NodePublish+Unpublish, {MOUNTED} volumes mounted",
        await rounds(calls, count, count),
        "p50 10, p99 50",
    )
    for number in range(MOUNTED):
        await calls.unpublish(f"mounted-{number}")
    before = driver.rss("node")
    await rounds(calls, 1000, 10 * count)
    after = driver.rss("node")
    cpu = driver.cpu_seconds("node")
    await asyncio.sleep(IDLE_SECONDS)
    cpu = (driver.cpu_seconds("node") - cpu) / IDLE_SECONDS * 100
    print(
        f"\nnode plugin: {idle / MIB:.1f} MiB at start, {before / MIB:.1f} before and {after / MIB:.1f} after"
    )
    print(f"1000 publishes (target 80, no growth); idle it takes {cpu:.2f} % of a CPU")


async def main() -> None:
    """Runs the benchmark in a folder of its own."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.csi", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="samples of each line (default: %(default)s)")
    arguments = parser.parse_args()
    print(f"Linux {os.uname().release}, {os.cpu_count()} CPUs")
    # Nothing that a publish writes is synced. An ext4 without a journal would add its search for free inodes.
    with tempfile.TemporaryDirectory(prefix="k3-", dir="/dev/shm") as folder:
        async with running(Path(folder)) as driver:
            await bench(driver, arguments.rounds)


if __name__ == "__main__":
    asyncio.run(main())
