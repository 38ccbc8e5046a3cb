"""Both processes together, with a stand-in API server and the real usrbiod."""

import asyncio
import copy
import datetime
import os
import resource
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from csikit.apiserver import Body
from csikit.driver import CLUSTER, NODE, Driver, cluster, running
from csikit.waiting import eventually

from kube3fs_crds import LEASE_SECONDS, lease_name
from kube3fs_csi.api import csi_pb2, csi_pb2_grpc
from kube3fs_csi.names import PARAMETER_CLUSTER, PARAMETER_ORDERS, TOPOLOGY_KEY

MIB = 1 << 20
CAPABILITY = csi_pb2.VolumeCapability(
    mount=csi_pb2.VolumeCapability.MountVolume(),
    access_mode=csi_pb2.VolumeCapability.AccessMode(
        mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER
    ),
)


@pytest.fixture
async def driver() -> AsyncIterator[Driver]:
    # A short path: sockets are below it, and theirs end at 107 bytes.
    with tempfile.TemporaryDirectory(prefix="k3-") as folder:
        async with running(Path(folder)) as driver:
            yield driver


class Calls:
    """Clients of both services."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.controller: Any = csi_pb2_grpc.ControllerStub(
            grpc.aio.insecure_channel(f"unix://{driver.controller_socket}")
        )
        self.node: Any = csi_pb2_grpc.NodeStub(grpc.aio.insecure_channel(f"unix://{driver.node_socket}"))
        self.identity: Any = csi_pb2_grpc.IdentityStub(
            grpc.aio.insecure_channel(f"unix://{driver.node_socket}")
        )

    async def create(self, name: str = "pvc-1", size: int = 8 * MIB, **more: Any) -> csi_pb2.Volume:
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size),
            volume_capabilities=[CAPABILITY],
            parameters={PARAMETER_CLUSTER: CLUSTER},
            **more,
        )
        return (await self.controller.CreateVolume(request, timeout=20)).volume

    def target(self, name: str = "pvc-1", pod: str = "pod-a") -> Path:
        return self._driver.kubelet / "pods" / pod / "volumes/kubernetes.io~csi" / name / "mount"

    async def publish(self, name: str = "pvc-1", pod: str = "pod-a") -> Path:
        target = self.target(name, pod)
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=name,
            target_path=str(target),
            volume_capability=CAPABILITY,
            volume_context={
                PARAMETER_CLUSTER: CLUSTER,
                "csi.storage.k8s.io/pod.uid": pod,
                "csi.storage.k8s.io/pod.namespace": "team",
                "csi.storage.k8s.io/pod.name": "trainer",
            },
        )
        await self.node.NodePublishVolume(request, timeout=30)
        return target

    async def unpublish(self, name: str = "pvc-1", pod: str = "pod-a") -> None:
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=name, target_path=str(self.target(name, pod)))
        await self.node.NodeUnpublishVolume(request, timeout=30)

    async def delete(self, name: str = "pvc-1", seconds: float = 20) -> None:
        await self.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=name), timeout=seconds)


@pytest.fixture
def calls(driver: Driver) -> Calls:
    return Calls(driver)


def refusal(code: str, sentence: str) -> Any:
    """Expects an RPC to be answered with `code` and a sentence."""
    return pytest.raises(grpc.aio.AioRpcError, match=rf"(?s){code}.*{sentence}")


def ready(driver: Driver, volume: str) -> tuple[str, str]:
    """Status and reason of the condition Ready of a StorageVolume."""
    conditions = (driver.api.get("storagevolumes", volume) or {})["status"]["conditions"]
    return next((one["status"], one["reason"]) for one in conditions if one["type"] == "Ready")


async def test_a_volume_from_its_making_to_its_end(driver: Driver, calls: Calls) -> None:
    """Made on the node, reported in its object, mounted, counted, and gone without a trace."""
    made = await calls.create()
    assert made.accessible_topology[0].segments == {TOPOLOGY_KEY: NODE}
    status = (driver.api.get("storagevolumes", "pvc-1") or {})["status"]
    assert (status["capacityBytes"], status["size"], status["backend"]) == (8 * MIB, "8Mi", "directory")
    conditions = {one["type"]: one["status"] for one in status["conditions"]}
    assert conditions == {"Ready": "True", "CapacityEnforced": "False"}
    target = await calls.publish()
    await asyncio.to_thread((target / "file").write_bytes, bytes(MIB))
    request = csi_pb2.NodeGetVolumeStatsRequest(volume_id="pvc-1", volume_path=str(target))
    inodes = 0
    async with asyncio.timeout(20):
        while inodes < 2:  # what was counted a moment ago is remembered
            usage = {one.unit: one for one in (await calls.node.NodeGetVolumeStats(request, timeout=5)).usage}
            inodes = usage[csi_pb2.VolumeUsage.INODES].used
    assert inodes == 2
    assert usage[csi_pb2.VolumeUsage.BYTES].total == 8 * MIB
    assert usage[csi_pb2.VolumeUsage.BYTES].used >= MIB
    await calls.unpublish()
    await calls.delete()
    assert driver.api.get("storagevolumes", "pvc-1") is None
    assert list((driver.data / "volumes").iterdir()) == []
    await eventually(lambda: list((driver.data / "trash").iterdir()) == [])


async def test_a_volume_grows_under_its_pod(calls: Calls) -> None:
    """`df` shows the size that was asked for, and the new one when ControllerExpandVolume has returned."""

    def size() -> int:
        stat = os.statvfs(target)
        return stat.f_blocks * stat.f_frsize

    await calls.create()
    target = await calls.publish()
    assert await asyncio.to_thread(size) == 8 * MIB
    more = csi_pb2.CapacityRange(required_bytes=16 * MIB)
    await calls.controller.ControllerExpandVolume(
        csi_pb2.ControllerExpandVolumeRequest(volume_id="pvc-1", capacity_range=more), timeout=20
    )
    assert await asyncio.to_thread(size) == 16 * MIB
    confirmed = await calls.node.NodeExpandVolume(
        csi_pb2.NodeExpandVolumeRequest(volume_id="pvc-1", volume_path=str(target), capacity_range=more),
        timeout=20,
    )
    assert confirmed.capacity_bytes == 16 * MIB
    await calls.unpublish()


async def test_a_mounted_volume_is_not_deleted(driver: Driver, calls: Calls) -> None:
    """DeleteVolume is refused before anything is marked: the pod's end does not cost the data."""
    await calls.create()
    target = await calls.publish()
    await asyncio.to_thread((target / "file").write_bytes, b"precious")
    for _ in range(2):
        with refusal("FAILED_PRECONDITION", f"in use by pod team/trainer on node {NODE}.*Retain"):
            await calls.delete()
    assert "deletionTimestamp" not in (driver.api.get("storagevolumes", "pvc-1") or {})["metadata"]
    await calls.unpublish()
    await eventually(lambda: "usedBy" not in used(driver) or used(driver)["usedBy"] == [])
    assert (driver.data / "volumes/pvc-1/file").read_bytes() == b"precious"
    await calls.delete()
    assert driver.api.get("storagevolumes", "pvc-1") is None


def used(driver: Driver) -> Body:
    status: Body = (driver.api.get("storagevolumes", "pvc-1") or {})["status"]
    return status


async def test_a_volume_deleted_by_hand_goes_when_no_pod_has_it(driver: Driver, calls: Calls) -> None:
    """`kubectl delete tfv` marks it; until the pod has ended its condition names the pod."""
    await calls.create()
    await calls.publish()
    await driver.api.delete("storagevolumes", "pvc-1")
    await eventually(lambda: ready(driver, "pvc-1") == ("False", "NotDeleted"))
    with refusal("FAILED_PRECONDITION", "in use by pod team/trainer.*deleted when no pod uses it"):
        await calls.delete()
    await calls.unpublish()
    await eventually(lambda: driver.api.get("storagevolumes", "pvc-1") is None)
    await calls.delete()


async def test_a_volume_whose_disk_is_missing_is_not_made_again(driver: Driver, calls: Calls) -> None:
    """After a reboot without its disk: pods wait, and have their data when the disk is back."""
    await calls.create()
    driver.kill("node")
    disk = driver.data.rename(driver.folder / "disk")
    driver.data.mkdir()
    await driver.start_node()
    await eventually(lambda: not driver.serves())
    with pytest.raises(grpc.aio.AioRpcError, match="mount its disk again") as refused:
        await calls.publish()
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert list(driver.data.iterdir()) == []
    driver.kill("node")
    (disk / "volumes/pvc-1").rename(disk / "lost")
    driver.data.rmdir()
    disk.rename(driver.data)
    await driver.start_node()
    await eventually(lambda: ready(driver, "pvc-1") == ("False", "DataMissing"))
    driver.kill("node")
    (driver.data / "lost").rename(driver.data / "volumes/pvc-1")
    await driver.start_node()
    await eventually(lambda: ready(driver, "pvc-1")[0] == "True")
    await calls.publish()


async def test_what_does_not_fit_is_taken_back(driver: Driver, calls: Calls) -> None:
    """RESOURCE_EXHAUSTED leaves no object behind, so that another node may be tried."""
    with refusal("RESOURCE_EXHAUSTED", "ask for less"):
        await calls.create(size=1 << 60)
    assert driver.api.get("storagevolumes", "pvc-1") is None


async def test_a_storage_class_may_turn_orders_on(calls: Calls) -> None:
    """Its volumes carry the attribute to the node; those of others do not."""
    parameters = {PARAMETER_CLUSTER: CLUSTER, PARAMETER_ORDERS: "true"}
    request = csi_pb2.CreateVolumeRequest(
        name="pvc-orders", volume_capabilities=[CAPABILITY], parameters=parameters
    )
    made = (await calls.controller.CreateVolume(request, timeout=20)).volume
    assert dict(made.volume_context) == parameters
    assert PARAMETER_ORDERS not in (await calls.create("pvc-plain")).volume_context


async def test_a_cluster_must_be_there_and_ready(driver: Driver, calls: Calls) -> None:
    """An unknown cluster is the claim's mistake; one that is not Ready may be later."""
    request = csi_pb2.CreateVolumeRequest(
        name="pvc-1", volume_capabilities=[CAPABILITY], parameters={PARAMETER_CLUSTER: "storage/none"}
    )
    with refusal("INVALID_ARGUMENT", "there is no StorageCluster storage/none"):
        await calls.controller.CreateVolume(request, timeout=10)
    namespace, name = CLUSTER.split("/")
    await driver.api.patch_status("storageclusters", name, cluster("False")["status"], namespace)

    async def refused() -> bool:
        try:
            await calls.create(f"pvc-{len(driver.api.objects)}")
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE and "is not ready" in str(error.details())
        return False

    for _ in range(100):  # the controller's cache follows
        if await refused():
            return
    pytest.fail("the controller still makes volumes in a cluster that is not ready")


async def test_a_second_call_on_the_same_volume_is_aborted(driver: Driver, calls: Calls) -> None:
    """While usrbiod is away a publish waits; a second call is told so, and the first ends as it should."""
    await calls.create()
    driver.daemon.kill()
    first = asyncio.create_task(calls.publish())
    published = driver.kubelet / "plugins/csi.kube3fs.io/published"
    await eventually(lambda: list(published.iterdir()))
    with refusal("ABORTED", "another call is still working"):
        await calls.unpublish()
    await asyncio.to_thread(driver.daemon.start)
    await first
    await calls.unpublish()
    assert driver.mounted() == []


async def test_a_call_that_cannot_end_in_time_says_so_in_words(driver: Driver, calls: Calls) -> None:
    """Before the caller's deadline, not after: the kubelet shows the sentence to the user."""
    await calls.create()
    driver.daemon.kill()
    request = csi_pb2.NodePublishVolumeRequest(
        volume_id="pvc-1",
        target_path=str(calls.target()),
        volume_capability=CAPABILITY,
        volume_context={PARAMETER_CLUSTER: CLUSTER, "csi.storage.k8s.io/pod.uid": "pod-a"},
    )
    with refusal("DEADLINE_EXCEEDED", "pvc-1 at .* the same call finds its result"):
        await calls.node.NodePublishVolume(request, timeout=2)
    await asyncio.to_thread(driver.daemon.start)


async def test_probe_tells_the_truth_about_usrbiod(driver: Driver, calls: Calls) -> None:
    """The node is ready while usrbiod answers, and its storage health says when it does not."""

    async def ready() -> bool:
        return bool((await calls.identity.Probe(csi_pb2.ProbeRequest(), timeout=5)).ready.value)

    async def until(wanted: bool) -> None:
        async with asyncio.timeout(10):
            while await ready() is not wanted:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    await until(True)
    driver.daemon.kill()
    await until(False)
    health = await calls.node.NodeGetStorageHealth(csi_pb2.NodeGetStorageHealthRequest(), timeout=5)
    assert [one.reason for one in health.backend_health] == ["DaemonAway"]
    await eventually(lambda: _daemon(driver)["healthy"] is False)


def _daemon(driver: Driver) -> Body:
    daemon: Body = (driver.api.get("storagenodes", NODE) or {})["status"]["daemon"]
    return daemon


@pytest.mark.parametrize("order", [("node", "daemon"), ("daemon", "node")], ids="-then-".join)
async def test_both_killed_pods_are_told_and_new_pods_work(
    driver: Driver, calls: Calls, order: tuple[str, str]
) -> None:
    """After plugin and usrbiod died together the volume's health says so; the next pod gets a new mount."""
    await calls.create()
    target = await calls.publish()
    for name in order:
        driver.kill(name) if name == "node" else driver.daemon.kill()
    await asyncio.to_thread(driver.daemon.start)
    await driver.start_node()
    calls = Calls(driver)
    request = csi_pb2.NodeGetVolumeHealthRequest(volume_id="pvc-1", volume_publish_path=str(target))

    async def statuses() -> list[Any]:
        answer = await calls.node.NodeGetVolumeHealth(request, timeout=5)
        return [(one.status, one.reason) for one in answer.volume_health.health_statuses]

    async with asyncio.timeout(20):
        while (csi_pb2.INACCESSIBLE, "MountDead") not in await statuses():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    other = await calls.publish(pod="pod-b")
    await asyncio.to_thread((other / "file").touch)
    await calls.unpublish(pod="pod-a")
    await calls.unpublish(pod="pod-b")
    assert driver.mounted() == []


async def test_two_hundred_pods_leak_nothing(driver: Driver, calls: Calls) -> None:
    """Publishing and unpublishing 200 times leaves no mount, fd, file or record, and memory does not grow."""
    await calls.create()

    async def round_of(pods: range) -> None:
        for start in range(pods.start, pods.stop, 10):
            some = [f"pod-{number}" for number in range(start, start + 10)]
            await asyncio.gather(*(calls.publish(pod=pod) for pod in some))
            await asyncio.gather(*(calls.unpublish(pod=pod) for pod in some))

    await round_of(range(50))  # threads and caches are there
    fds, memory = driver.open_fds("node"), driver.rss("node")
    await round_of(range(50, 250))
    assert driver.mounted() == []
    # Connections to the API server that are kept for a while are no leak.
    await eventually(lambda: driver.open_fds("node") <= fds, 30)
    assert driver.rss("node") - memory < 8 * MIB
    state = driver.kubelet / "plugins/csi.kube3fs.io"
    assert list((state / "published").iterdir()) == []
    assert list((state / "shm").iterdir()) == []
    await eventually(lambda: driver.daemon.state_files() == [])


async def test_the_node_may_open_as_many_files_as_it_can_be_allowed(driver: Driver) -> None:
    """Container runtimes set a soft limit that the files of a few pods would reach."""
    driver.kill("node")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, limits[1]))
    try:
        await driver.start_node()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert driver.fd_limits("node") == (limits[1], limits[1])


async def test_a_node_that_reports_renews_its_lease(driver: Driver) -> None:
    """Once every 20 s at least; a plugin that is stopped does not. It goes with the StorageNode."""
    key = ("leases", "kube3fs-system", lease_name(NODE))

    def renewed() -> datetime.datetime:
        return datetime.datetime.fromisoformat(driver.api.objects[key]["spec"]["renewTime"])

    await eventually(lambda: key in driver.api.objects)
    lease, first = driver.api.objects[key], renewed()
    assert (lease["spec"]["holderIdentity"], lease["spec"]["leaseDurationSeconds"]) == (NODE, LEASE_SECONDS)
    owner = lease["metadata"]["ownerReferences"][0]
    assert (owner["kind"], owner["name"]) == ("StorageNode", NODE)
    assert owner["uid"] == (driver.api.get("storagenodes", NODE) or {})["metadata"]["uid"]
    await eventually(lambda: renewed() > first)
    assert renewed() - first <= datetime.timedelta(seconds=20)


async def test_a_defect_shows_no_traceback(driver: Driver, calls: Calls) -> None:
    """What goes wrong inside is answered with a sentence; the traceback is in the log."""
    await calls.create()
    (driver.data / "volumes/pvc-1").rmdir()
    (driver.data / "volumes/pvc-1").write_text("in the way")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await calls.publish()
    assert "Traceback" not in str(refused.value.details())
    assert "/src/kube3fs_csi" not in str(refused.value.details())


async def test_a_cluster_that_takes_the_folder_of_another_keeps_it(driver: Driver, calls: Calls) -> None:
    """The operator lets it in when the other is gone, in one step: nothing of the folder is tidied away."""
    root = driver.data / "second"
    first = (driver.api.get("storagenodes", NODE) or {})["spec"]["clusters"]

    async def serve(name: str) -> None:
        now = copy.deepcopy(driver.api.get("storagenodes", NODE) or {})
        now["spec"]["clusters"] = [*first, {"namespace": "storage", "name": name, "path": str(root)}]
        await driver.api.put("storagenodes", now)

        def is_ready() -> bool:
            status = (driver.api.get("storagenodes", NODE) or {}).get("status", {})
            return any(one["name"] == name and one["ready"] for one in status.get("clusters", ()))

        await eventually(is_ready)

    await serve("before")
    await serve("after")
    await calls.create()  # a deletion has the trash of all emptied
    await calls.delete()
    (root / "trash/left").mkdir()
    await calls.create()
    await calls.delete()
    await eventually(lambda: not (root / "trash/left").exists())
    assert (root / "volumes").is_dir()


async def test_a_cluster_that_is_gone_leaves_no_folders(driver: Driver, calls: Calls) -> None:
    """Its trash is emptied first; one that comes again at the same place is served."""
    root = driver.data / "second"
    body = copy.deepcopy(driver.api.get("storagenodes", NODE) or {})
    first = body["spec"]["clusters"]
    second = {"namespace": "storage", "name": "second", "path": str(root)}

    async def serve(clusters: list[Body]) -> None:
        now = copy.deepcopy(driver.api.get("storagenodes", NODE) or {})
        now["spec"]["clusters"] = clusters
        await driver.api.put("storagenodes", now)

    for _ in range(2):
        await serve([*first, second])
        await eventually((root / "trash").is_dir)
        (root / "trash/left").mkdir()
        await serve(first)
        await eventually(lambda: not root.exists(), 90)
    assert (driver.data / "volumes").is_dir()
    await serve([*first, second])
    await eventually((root / "volumes").is_dir)
    (root / "volumes/precious").mkdir()
    await serve(first)
    await calls.create()
    assert (root / "volumes/precious").is_dir()
