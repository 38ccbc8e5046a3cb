"""Reconciles against a fake API server over HTTP: what is written, in which order, and what failures do."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from kube3fs_operator.api import Api
from kube3fs_operator.faults import STEPS, Faults
from kube3fs_operator.reconcile import NodeKey, Reconciler
from kube3fs_operator.render import FINALIZER
from kube3fs_operator.views import ClusterKey

from .conftest import GIB, NOW, Make, world_of
from .fakeapi import FakeApi

DEMO = ClusterKey("team", "demo")
NODE = NodeKey("node-a")
Run = Callable[..., Awaitable[list[str]]]


class Killed(Exception):
    """The process would be gone here."""


class RaisingFaults(Faults):
    """Ends one reconcile at the point, as a kill would, and then lets the next life go on."""

    def __init__(self, point: str) -> None:
        super().__init__(point)
        self.hits = 0

    @contextmanager
    def around(self, step: Any) -> Iterator[None]:
        self._stop_at(f"before:{step}")
        yield
        self._stop_at(f"after:{step}")

    def _stop_at(self, point: str) -> None:
        if point == self._point and not self.hits:
            self.hits += 1
            raise Killed(point)


@pytest.fixture
async def run() -> AsyncIterator[Callable[[FakeApi], Any]]:
    """Returns a function that gives a fake API server a reconcile loop."""
    servers: list[Any] = []

    async def start(fake: FakeApi, faults: Faults | None = None) -> Run:
        server = TestServer(fake.app())
        await server.start_server()
        api_client = client.ApiClient(client.Configuration(host=str(server.make_url("")).rstrip("/")))
        servers.extend([server, api_client])
        api = Api(api_client, "test", faults or Faults(), timeout=5.0)

        async def settle(*keys: Any, hidden: tuple[str, ...] = ()) -> list[str]:
            """Reconcile these keys with ever new eyes until nothing is written. Returns what was written.

            Objects of the hidden kinds exist but are not in the cache.
            """
            unseen = ("PersistentVolume", *hidden)
            written: list[str] = []
            for _ in range(20):
                fake.writes.clear()
                for key in keys:
                    world = world_of(b for b in fake.objects.values() if b["kind"] not in unseen)
                    await Reconciler(world, api, lambda: NOW, fake.silent.get).reconcile(key)
                if not fake.writes:
                    return written
                written += fake.writes
            raise AssertionError(f"does not settle: {written}")

        return settle

    yield start
    for thing in reversed(servers):
        await thing.close()


def fresh(fake: FakeApi) -> None:
    """A cluster just applied, on a node that could serve it and was not told to yet."""
    body = Make.cluster()
    body["metadata"]["finalizers"] = []
    node = Make.storage_node("node-a", "demo")
    node["spec"] = {}
    fake.add(body, Make.node(), node)


async def test_a_new_cluster_gets_finalizer_classes_and_status_in_that_order(run: Any) -> None:
    """The finalizer is there before anything that it has to guard."""
    fake = FakeApi()
    fresh(fake)
    written = await (await run(fake))(DEMO, NODE)
    assert written[:3] == [
        "patch StorageCluster demo",
        "patch StorageClass team.demo",
        "patch VolumeSnapshotClass team.demo",
    ]
    assert fake.objects["StorageCluster", "team", "demo"]["metadata"]["finalizers"] == [FINALIZER]
    assert fake.objects["StorageNode", "", "node-a"]["spec"]["clusters"][0]["name"] == "demo"


async def test_a_settled_cluster_costs_no_request(run: Any) -> None:
    """A second pass writes nothing."""
    fake = FakeApi()
    fresh(fake)
    settle = await run(fake)
    await settle(DEMO, NODE)
    assert await settle(DEMO, NODE) == []


@pytest.mark.parametrize("code", [409, 500, 503], ids=["conflict", "server-error", "unavailable"])
async def test_a_failed_write_is_retried_to_the_same_end(run: Any, code: int) -> None:
    """A conflict or an outage raises for the queue to retry; the next pass ends where it should."""
    fake = FakeApi()
    fresh(fake)
    settle = await run(fake)
    fake.fail_next = [(code, "try again")]
    with pytest.raises(ApiException):
        await settle(DEMO)
    await settle(DEMO, NODE)
    assert ("StorageClass", "", "team.demo") in fake.objects


async def test_a_class_that_is_refused_shows_in_the_condition(run: Any) -> None:
    """The API server's own sentence is in ClassesReady, and the reconcile is retried."""
    fake = FakeApi()
    fake.add(Make.cluster(), Make.node(), Make.storage_node("node-a", "demo"))
    settle = await run(fake)
    fake.fail_next = [(422, "StorageClass is invalid: parameters: updates are forbidden")]
    with pytest.raises(ApiException):
        await settle(DEMO)
    conditions = fake.objects["StorageCluster", "team", "demo"]["status"]["conditions"]
    seen = next(c for c in conditions if c["type"] == "ClassesReady")
    assert (seen["reason"], seen["message"]) == (
        "ApplyFailed",
        "StorageClass is invalid: parameters: updates are forbidden",
    )


async def test_without_the_snapshot_api_the_cluster_is_ready_and_says_so(run: Any) -> None:
    """No VolumeSnapshotClass can be made; that is a remark, not a failure."""
    fake = FakeApi(missing_kinds=("VolumeSnapshotClass",))
    fresh(fake)
    await (await run(fake))(DEMO, NODE)
    conditions = {
        c["type"]: c for c in fake.objects["StorageCluster", "team", "demo"]["status"]["conditions"]
    }
    assert conditions["Ready"]["status"] == "True"
    assert conditions["ClassesReady"]["reason"] == "NoSnapshots"


async def test_a_foreign_class_of_the_same_name_is_never_touched(run: Any) -> None:
    """The cluster stalls and says what to do; the foreign class stays as it is."""
    fake = FakeApi()
    fake.add(Make.cluster(), Make.node(), Make.storage_node("node-a", "demo"))
    foreign = Make.storage_class("team.demo", owner=None)
    fake.add(foreign)
    written = await (await run(fake))(DEMO)
    assert not [w for w in written if "StorageClass" in w]
    conditions = {
        c["type"]: c for c in fake.objects["StorageCluster", "team", "demo"]["status"]["conditions"]
    }
    assert conditions["Stalled"]["reason"] == "StorageClassTaken"
    assert "spec.storageClassName" in conditions["Ready"]["message"]


async def test_deletion_waits_for_volumes_and_then_ends(run: Any) -> None:
    """Classes go first, the object last, and not before the volume is gone."""
    fake = FakeApi()
    fake.add(Make.cluster(deleting=True), Make.node(), Make.storage_node("node-a", "demo"), Make.volume())
    fake.add(Make.storage_class("team.demo", owner="demo"))
    settle = await run(fake)
    written = await settle(DEMO, NODE)
    assert written[0] == "delete StorageClass team.demo"
    assert not [w for w in written if w.startswith("delete StorageVolume")]
    conditions = {
        c["type"]: c for c in fake.objects["StorageCluster", "team", "demo"]["status"]["conditions"]
    }
    assert conditions["Ready"]["reason"] == "DeletionBlocked"
    assert "pvc-1 on node-a" in conditions["Ready"]["message"]
    del fake.objects["StorageVolume", "", "pvc-1"]
    await settle(DEMO, NODE)
    assert ("StorageCluster", "team", "demo") not in fake.objects
    assert fake.objects["StorageNode", "", "node-a"]["spec"]["clusters"] == []


async def test_delete_policy_deletes_only_what_no_persistent_volume_names(run: Any) -> None:
    """A volume in use holds the deletion back under either policy."""
    fake = FakeApi()
    fake.add(
        Make.cluster(deleting=True, deletionPolicy="Delete"),
        Make.volume("pvc-used"),
        Make.volume("pvc-left"),
        {
            "kind": "PersistentVolume",
            "metadata": {"name": "pvc-used"},
            "spec": {"csi": {"driver": "csi.kube3fs.io", "volumeHandle": "pvc-used"}},
        },
    )
    written = await (await run(fake))(DEMO)
    assert [w for w in written if w.startswith("delete")] == ["delete StorageVolume pvc-left"]
    assert ("StorageCluster", "team", "demo") in fake.objects


async def test_a_volume_that_the_cache_has_not_seen_holds_the_cluster(run: Any) -> None:
    """The last look before the finalizer goes is at the API server, not at the cache."""
    fake = FakeApi()
    fake.add(Make.cluster(deleting=True), Make.volume())
    await (await run(fake))(DEMO, hidden=("StorageVolume",))
    assert ("StorageCluster", "team", "demo") in fake.objects


async def test_deleted_volumes_of_a_removed_node_are_given_up(run: Any) -> None:
    """Nothing hangs on a node that is gone: deleted volumes lose its finalizer, living ones are kept."""
    fake = FakeApi()
    fake.add(Make.cluster(), Make.storage_node("node-a"))
    fake.add(Make.volume("pvc-dead", deleting=True), Make.volume("pvc-live"), Make.snapshot())
    settle = await run(fake)
    await settle(NODE)
    kinds = {(kind, name) for kind, _, name in fake.objects}
    assert ("StorageVolume", "pvc-dead") not in kinds
    assert {("StorageVolume", "pvc-live"), ("StorageSnapshot", "snap-1"), ("StorageNode", "node-a")} <= kinds
    del fake.objects["StorageVolume", "", "pvc-live"], fake.objects["StorageSnapshot", "", "snap-1"]
    await settle(NODE)
    assert ("StorageNode", "", "node-a") not in fake.objects


async def test_nothing_is_given_up_while_the_node_exists(run: Any) -> None:
    """A node that the cache has lost, but Kubernetes has not, keeps its volumes."""
    fake = FakeApi()
    fake.add(Make.volume(deleting=True), Make.storage_node("node-a"), Make.node())
    await (await run(fake))(NODE, hidden=("Node",))
    assert ("StorageVolume", "", "pvc-1") in fake.objects


async def test_the_taint_goes_when_the_node_can_serve(run: Any) -> None:
    """Other taints stay, and a node whose plugin is not ready keeps ours."""
    fake = FakeApi()
    node = Make.node(tainted=True)
    node["spec"]["taints"].insert(0, {"key": "gpu", "effect": "NoSchedule"})
    fake.add(node, Make.storage_node("node-a", ready="False"))
    settle = await run(fake)
    await settle(NODE)
    assert len(node["spec"]["taints"]) == 2
    fake.add(Make.storage_node("node-a"))
    await settle(NODE)
    assert [taint["key"] for taint in node["spec"]["taints"]] == ["gpu"]


async def test_a_status_older_than_our_own_write_is_not_acted_on(run: Any) -> None:
    """A watch that lags does not make the operator write the same status again."""
    fake = FakeApi()
    fake.add(Make.cluster(), Make.node(), Make.storage_node("node-a", "demo", available=50 * GIB))
    server = TestServer(fake.app())
    await server.start_server()
    async with client.ApiClient(
        client.Configuration(host=str(server.make_url("")).rstrip("/"))
    ) as api_client:
        stale = world_of([Make.cluster(), Make.node(), Make.storage_node("node-a", "demo")])
        reconciler = Reconciler(stale, Api(api_client, "test", Faults()), lambda: NOW)
        await reconciler.reconcile(DEMO)
        count = len(fake.writes)
        await reconciler.reconcile(DEMO)
        assert len(fake.writes) == count
    await server.close()


def dying(fake: FakeApi) -> None:
    """A cluster being deleted whose one volume is a leftover."""
    body = Make.volume()
    body["metadata"]["finalizers"] = []
    fake.add(Make.cluster(deleting=True, deletionPolicy="Delete"), body, Make.node())
    fake.add(Make.storage_class("team.demo", owner="demo"), Make.storage_node("node-a", "demo"))


def lost(fake: FakeApi) -> None:
    """A deleted volume on a node that is gone."""
    fake.add(Make.volume(deleting=True), Make.storage_node("node-a"))


def waking(fake: FakeApi) -> None:
    """A node that can serve and still has the taint."""
    fake.add(Make.node(tainted=True), Make.storage_node("node-a"))


def silent(fake: FakeApi) -> None:
    """A node that was ready, and whose plugin does not speak any more."""
    fake.add(Make.node(), Make.storage_node("node-a", "demo"), Make.cluster(), lease("node-a", SPOKE))
    fake.silent["node-a"] = f"{SPOKE}+00:00"


SPOKE = "2026-01-01T00:00:00"


def lease(node: str, renewed: str) -> dict[str, Any]:
    """The Lease of a node plugin."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"namespace": "default", "name": f"kube3fs-node.{node}"},
        "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": f"{renewed}.000000Z"},
    }


async def test_a_silent_node_becomes_unknown_and_its_clusters_say_so(run: Any) -> None:
    """What it reported stays, with the doubt beside it; nothing is written twice."""
    fake = FakeApi()
    silent(fake)
    settle = await run(fake)
    await settle(NODE, DEMO)
    status = fake.objects["StorageNode", "", "node-a"]["status"]
    ready = next(one for one in status["conditions"] if one["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("Unknown", "NodePluginSilent")
    assert "kube3fs-node.node-a" in ready["message"]
    assert status["clusters"]
    conditions = fake.objects["StorageCluster", "team", "demo"]["status"]["conditions"]
    seen = {one["type"]: (one["status"], one["reason"]) for one in conditions}
    assert seen["Ready"] == seen["NodesReady"] == ("False", "NodePluginSilent")
    assert await settle(NODE, DEMO) == []


async def test_a_node_that_speaks_again_is_not_doubted(run: Any) -> None:
    """Its Lease is asked for afresh before it is written off."""
    fake = FakeApi()
    silent(fake)
    fake.add(lease("node-a", "2026-01-01T00:01:00"))
    assert await (await run(fake))(NODE) == []


LIVES: dict[str, Callable[[FakeApi], None]] = {
    **dict.fromkeys(("finalizer", "class", "status", "event", "node"), fresh),
    **dict.fromkeys(("class-delete", "volume-delete", "release"), dying),
    **dict.fromkeys(("give-up", "node-delete"), lost),
    "taint": waking,
    "node-silent": silent,
}


def test_every_step_has_its_life() -> None:
    """The table below kills the operator at every write there is."""
    assert set(LIVES) == set(STEPS)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_killed_at_any_write_the_next_life_ends_the_same(run: Any, step: str, moment: str) -> None:
    """A kill before or after any write leaves nothing that the next life does not bring to the same end."""
    undisturbed, disturbed = FakeApi(), FakeApi()
    for fake in (undisturbed, disturbed):
        LIVES[step](fake)
    await (await run(undisturbed))(DEMO, NODE)
    faults = RaisingFaults(f"{moment}:{step}")
    settle = await run(disturbed, faults)
    for _ in range(2):
        try:
            await settle(DEMO, NODE)
        except Killed:
            continue
    assert faults.hits == 1, f"{step} was never written"
    assert without_versions(disturbed) == without_versions(undisturbed)


def without_versions(fake: FakeApi) -> dict[Any, Any]:
    """The objects without their resourceVersions, which count writes."""
    return {
        key: {**body, "metadata": {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}}
        for key, body in fake.objects.items()
    }
