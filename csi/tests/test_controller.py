"""The controller with a stand-in API server; the test plays the node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from csikit.apiserver import ApiServer, Body
from csikit.driver import CLUSTER, NODE, cluster
from csikit.waiting import eventually

from kube3fs_crds import ClusterRef, StorageCluster, StorageNode, StorageSnapshot, StorageVolume, VolumeSource
from kube3fs_csi.api import csi_pb2
from kube3fs_csi.controller.requests import Wanted
from kube3fs_csi.controller.service import VolumeService
from kube3fs_csi.controller.servicer import CAPABILITIES, Controller
from kube3fs_csi.controller.wanted import Sweeper
from kube3fs_csi.kube.api import connected
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.names import PENDING_FOR
from kube3fs_csi.serving.errors import (
    CsiError,
    DeadlineNear,
    Exhausted,
    InvalidArgument,
    NotFound,
    OutOfRange,
    Precondition,
    Unavailable,
)

GIB = 1 << 30
NAMESPACE, NAME = CLUSTER.split("/")
REF = {"namespace": NAMESPACE, "name": NAME}
CLAIM = {"metadata": {"namespace": "team", "name": "data", "uid": "1"}}
SECONDS = 10.0


class World:
    """The controller's parts over an API server."""

    def __init__(self, server: ApiServer, service: VolumeService, sweeper: Sweeper) -> None:
        self.server = server
        self.service = service
        self.sweeper = sweeper

    async def create(self, name: str = "pvc-1", seconds: float = SECONDS, **changes: Any) -> StorageVolume:
        """CreateVolume, as the provisioner calls it for the claim team/data."""
        wanted = Wanted(name, ClusterRef(**REF), GIB, 0, None, (NODE,), "team/data")
        return await self.service.create_volume(wanted._replace(**changes), seconds)

    async def node_says(self, plural: str, name: str, status: Body) -> None:
        """The node reports of what was asked of it."""
        await eventually(lambda: self.server.get(plural, name))
        await self.server.patch_status(plural, name, {"observedGeneration": 1, **status})

    async def node_fails(self, code: str, plural: str = "storagevolumes", name: str = "pvc-1") -> None:
        """The node could not do it."""
        await self.node_says(plural, name, {"error": {"code": code, "message": "it could not"}})

    async def node_makes(self, name: str = "pvc-1") -> None:
        """The node has made the volume."""
        ready = {
            "type": "Ready", "status": "True", "reason": "Made", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }  # fmt: skip
        await self.node_says("storagevolumes", name, {"conditions": [ready], "capacityBytes": GIB})

    async def seen(self, name: str = "pvc-1") -> None:
        """The controller's cache is no longer behind."""
        body = self.server.get("storagevolumes", name)
        version = body["metadata"]["resourceVersion"] if body else None

        def same() -> bool:
            item = self.service.volumes.items.get(name)
            return (item.metadata.resource_version if item else None) == version

        await eventually(same)

    def is_leaving(self, plural: str = "storagevolumes", name: str = "pvc-1") -> bool:
        """Whether the object is gone, or goes as soon as its node has seen it."""
        body = self.server.get(plural, name)
        return body is None or "deletionTimestamp" in body["metadata"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with ApiServer().running() as server, connected(str(server.kubeconfig(tmp_path / "kube"))) as api:
        objects = Objects(api, "test")
        volumes, snapshots = Informer(objects, StorageVolume), Informer(objects, StorageSnapshot)
        nodes, clusters = Informer(objects, StorageNode), Informer(objects, StorageCluster)
        share = {"path": "/data", "ready": True, "capacityBytes": 100 * GIB, "availableBytes": 100 * GIB}
        await server.put("storagenodes", {"metadata": {"name": NODE}, "status": {"clusters": [REF | share]}})
        await server.put("storageclusters", cluster())
        await server.put("persistentvolumeclaims", CLAIM)
        caches = (volumes, snapshots, nodes, clusters)
        running = [asyncio.create_task(cache.run()) for cache in caches]
        for cache in caches:
            await cache.synced.wait()
        service = VolumeService(api, objects, volumes, snapshots, nodes, clusters)
        yield World(server, service, Sweeper(api, objects, volumes, snapshots))
        for task in running:
            task.cancel()


FINAL_CODES = ["INTERNAL", "FAILED_PRECONDITION", "ALREADY_EXISTS", "UNKNOWN"]
"""After one of these the sidecars neither ask again nor delete anything."""


@pytest.mark.parametrize("code", FINAL_CODES)
async def test_what_a_node_cannot_do_now_is_asked_again(world: World, code: str) -> None:
    """The provisioner goes on until it succeeds, also when the claim is deleted meanwhile."""
    call = asyncio.create_task(world.create())
    await world.node_fails(code)
    with pytest.raises(Unavailable, match="it could not; this is tried again"):
        await call
    assert not world.is_leaving()


@pytest.mark.parametrize("code", FINAL_CODES)
async def test_a_snapshot_that_a_node_cannot_take_now_is_asked_again(world: World, code: str) -> None:
    """As for volumes."""
    spec = {"nodeName": NODE, "clusterRef": REF, "capacityBytes": GIB}
    await world.server.put("storagevolumes", {"metadata": {"name": "pvc-1"}, "spec": spec})
    call = asyncio.create_task(world.service.create_snapshot("snapshot-1", "pvc-1", "", SECONDS))
    await world.node_fails(code, "storagesnapshots", "snapshot-1")
    with pytest.raises(Unavailable, match="it could not; this is tried again"):
        await call
    assert not world.is_leaving("storagesnapshots", "snapshot-1")


@pytest.mark.parametrize(
    ("code", "kind"),
    [("RESOURCE_EXHAUSTED", Exhausted), ("OUT_OF_RANGE", OutOfRange), ("NOT_FOUND", NotFound)],
)
async def test_what_can_never_succeed_there_is_taken_back(
    world: World, code: str, kind: type[CsiError]
) -> None:
    """After such a code nobody comes back for it."""
    call = asyncio.create_task(world.create())
    await world.node_fails(code)
    with pytest.raises(kind):
        await call
    assert world.is_leaving()


async def test_a_volume_that_somebody_has_is_never_taken_back(world: World) -> None:
    """A failed growth is no reason to delete what was handed out."""
    call = asyncio.create_task(world.create())
    await world.node_makes()
    await call
    body = world.server.get("storagevolumes", "pvc-1") or {}
    failed = body["status"] | {"error": {"code": "RESOURCE_EXHAUSTED", "message": "no room to grow"}}
    await world.server.patch_status("storagevolumes", "pvc-1", failed)
    await world.seen()
    with pytest.raises(Exhausted):
        await world.create()
    assert not world.is_leaving()


async def test_a_claim_that_is_gone_ends_the_making_of_its_volume(world: World) -> None:
    """The call is answered for good, and nothing is left."""
    with pytest.raises(DeadlineNear):
        await world.create(seconds=0.2)
    assert not world.is_leaving()
    del world.server.objects["persistentvolumeclaims", "team", "data"]
    with pytest.raises(NotFound, match=r"claim team/data.*is gone"):
        await world.create()
    assert world.is_leaving()
    with pytest.raises(NotFound, match=r"claim team/data.*is gone"):
        await world.create(name="pvc-2")
    assert world.server.get("storagevolumes", "pvc-2") is None


@pytest.mark.parametrize("made", [False, True], ids=["unmade", "made-meanwhile"])
@pytest.mark.parametrize("again", [False, True], ids=["claim-gone", "claim-of-the-same-name"])
async def test_what_a_restarted_controller_finds_for_nobody_is_taken_back(
    world: World, made: bool, again: bool
) -> None:
    """The sidecar has forgotten the claim, which is gone; another of its name changes nothing."""
    with pytest.raises(DeadlineNear):
        await world.create(seconds=0.2)
    if made:
        await world.node_makes()
    del world.server.objects["persistentvolumeclaims", "team", "data"]
    if again:
        await world.server.put(
            "persistentvolumeclaims", {"metadata": {"namespace": "team", "name": "data", "uid": "2"}}
        )
    await world.seen()
    await world.sweeper.sweep()
    assert world.is_leaving()


async def test_what_somebody_waits_for_or_has_is_not_swept(world: World) -> None:
    """A claim that is there, a volume that was handed out, a PersistentVolume made by hand: all are kept."""
    with pytest.raises(DeadlineNear):
        await world.create(seconds=0.2)
    await world.seen()
    await world.sweeper.sweep()
    assert not world.is_leaving()
    by_hand = {"csi": {"driver": "csi.kube3fs.io", "volumeHandle": "pvc-1"}}
    await world.server.put("persistentvolumes", {"metadata": {"name": "mine"}, "spec": by_hand})
    del world.server.objects["persistentvolumeclaims", "team", "data"]
    await world.sweeper.sweep()
    assert not world.is_leaving()
    await world.server.put("persistentvolumeclaims", CLAIM)
    await world.node_makes()
    await world.create()
    assert PENDING_FOR not in (world.server.get("storagevolumes", "pvc-1") or {})["metadata"]["annotations"]
    del world.server.objects["persistentvolumeclaims", "team", "data"]
    del world.server.objects["persistentvolumes", "", "mine"]
    await world.seen()
    await world.sweeper.sweep()
    assert not world.is_leaving()


async def test_a_restore_whose_snapshot_and_claim_go_leaves_nothing(world: World) -> None:
    """The provisioner cannot ask any more, as it does not find the snapshot: the sweeper does it."""
    snapshot = {"nodeName": NODE, "clusterRef": REF, "volumeName": "pvc-0"}
    await world.server.put("storagesnapshots", {"metadata": {"name": "snapshot-1"}, "spec": snapshot})
    await eventually(lambda: "snapshot-1" in world.service.snapshots.items)
    with pytest.raises(DeadlineNear):
        await world.create(seconds=0.2, source=VolumeSource(snapshot="snapshot-1"))
    del world.server.objects["storagesnapshots", "", "snapshot-1"]
    del world.server.objects["persistentvolumeclaims", "team", "data"]
    await world.seen()
    await world.sweeper.sweep()
    assert world.is_leaving()


async def test_a_snapshot_whose_content_goes_is_taken_back(world: World) -> None:
    """Whether it is asked for again or not."""
    spec = {"nodeName": NODE, "clusterRef": REF, "capacityBytes": GIB}
    await world.server.put("storagevolumes", {"metadata": {"name": "pvc-1"}, "spec": spec})
    for name in ("snapshot-1", "snapshot-2"):
        await world.server.put("volumesnapshotcontents", {"metadata": {"name": f"content-{name}"}})
        with pytest.raises(DeadlineNear):
            await world.service.create_snapshot(name, "pvc-1", f"content-{name}", 0.2)
        del world.server.objects["volumesnapshotcontents", "", f"content-{name}"]
    with pytest.raises(NotFound, match="is gone"):
        await world.service.create_snapshot("snapshot-1", "pvc-1", "content-snapshot-1", SECONDS)
    assert world.is_leaving("storagesnapshots", "snapshot-1")
    await eventually(lambda: "snapshot-2" in world.service.snapshots.items)
    await world.sweeper.sweep()
    assert world.is_leaving("storagesnapshots", "snapshot-2")


def persistent_volume(name: str, phase: str, policy: str = "Delete", *, deleting: bool = False) -> Body:
    metadata = {"name": name} | (
        {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x"]} if deleting else {}
    )
    spec = {
        "csi": {"driver": "csi.kube3fs.io", "volumeHandle": "pvc-1"},
        "persistentVolumeReclaimPolicy": policy,
    }
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase}}


RELEASED = persistent_volume("second", "Released")


@pytest.mark.parametrize(
    "others",
    [
        pytest.param([persistent_volume("first", "Bound"), RELEASED], id="another is bound"),
        pytest.param([persistent_volume("first", "Available"), RELEASED], id="another is available"),
        pytest.param([persistent_volume("first", "Released", "Retain"), RELEASED], id="another is retained"),
        pytest.param(
            [persistent_volume("first", "Bound", deleting=True), RELEASED], id="another goes, bound"
        ),
        pytest.param([persistent_volume("first", "Bound")], id="the only one is bound"),
    ],
)
async def test_a_volume_that_another_persistent_volume_refers_to_is_kept(
    world: World, others: list[Body]
) -> None:
    """A second one on the same handle with policy Delete does not destroy the first one's data."""
    call = asyncio.create_task(world.create())
    await world.node_makes()
    await call
    for body in others:
        await world.server.put("persistentvolumes", body)
    with pytest.raises(Precondition, match=r"first refers to volume pvc-1.*reclaim policy Retain"):
        await world.service.delete_volume("pvc-1", SECONDS)
    assert not world.is_leaving()


@pytest.mark.parametrize(
    "asking",
    [
        pytest.param([], id="none left"),
        pytest.param([RELEASED], id="released"),
        pytest.param([RELEASED, persistent_volume("first", "Failed")], id="both released"),
        pytest.param([persistent_volume("first", "Bound", deleting=True)], id="being deleted"),
    ],
)
async def test_who_asks_stands_not_in_its_own_way(world: World, asking: list[Body]) -> None:
    """The volume is deleted; with the last of several as well. A node that is gone is not asked."""
    call = asyncio.create_task(world.create())
    await world.node_makes()
    await call
    for body in asking:
        await world.server.put("persistentvolumes", body)
    with pytest.raises(DeadlineNear):  # the test's node does not do it
        await world.service.delete_volume("pvc-1", 0.3)
    assert world.is_leaving()


def generation(world: World) -> int:
    metadata = (world.server.get("storagevolumes", "pvc-1") or {})["metadata"]
    return int(metadata["generation"])


async def test_the_node_is_asked_who_uses_a_volume(world: World) -> None:
    """What it said before is not enough; while it does not answer nothing is marked."""
    call = asyncio.create_task(world.create())
    await world.node_makes()
    await call
    await world.server.put("nodes", {"metadata": {"name": NODE}})
    with pytest.raises(DeadlineNear, match="has not said yet whether a pod uses"):
        await world.service.delete_volume("pvc-1", 0.3)
    assert not world.is_leaving()
    # That nobody does, comes too late: since then a pod may have begun to.
    await world.node_says("storagevolumes", "pvc-1", {"observedGeneration": 2, "usedBy": []})
    await world.seen()
    deleting = asyncio.create_task(world.service.delete_volume("pvc-1", SECONDS))
    users = [f"team/pod-{number}" for number in range(9)]
    await eventually(lambda: generation(world) == 4)
    await world.node_says("storagevolumes", "pvc-1", {"observedGeneration": 4, "usedBy": users})
    with pytest.raises(Precondition, match=r"in use by pods team/pod-0.* and 4 more on node node-a"):
        await deleting
    assert not world.is_leaving()
    assert "deleteRequested" not in (world.server.get("storagevolumes", "pvc-1") or {})["spec"]


async def test_many_deletions_at_once_list_persistent_volumes_a_few_times(world: World) -> None:
    """Each sees a listing that began after it asked."""
    await asyncio.gather(*(world.service._persistent_volumes.of(f"pvc-{number}") for number in range(100)))
    assert 1 <= world.server.listed.count("persistentvolumes") <= 3


async def test_a_volume_attributes_class_is_refused_in_words(world: World) -> None:
    """On a bound claim as on a new one; one without parameters asks for nothing."""
    controller: Any = Controller(world.service)
    assert csi_pb2.ControllerServiceCapability.RPC.MODIFY_VOLUME in CAPABILITIES
    asked = csi_pb2.ControllerModifyVolumeRequest(volume_id="pvc-1", mutable_parameters={"iops": "9000"})
    with pytest.raises(NotFound, match="no volume pvc-1"):
        await controller.ControllerModifyVolume(asked, None)
    call = asyncio.create_task(world.create())
    await world.node_makes()
    await call
    with pytest.raises(InvalidArgument, match="remove the VolumeAttributesClass"):
        await controller.ControllerModifyVolume(asked, None)
    await controller.ControllerModifyVolume(csi_pb2.ControllerModifyVolumeRequest(volume_id="pvc-1"), None)
