"""The edge to the API server, with a stand-in for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from csikit.apiserver import ApiServer, Body
from csikit.driver import CLUSTER, cluster
from csikit.waiting import eventually

from kube3fs_crds import ObjectMeta, StorageCluster, StorageNode
from kube3fs_csi.kube import api as kube_api
from kube3fs_csi.kube import informer
from kube3fs_csi.kube.api import Api, connected
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.kube.pods import has_user_namespace
from kube3fs_csi.node.state import Pod
from kube3fs_csi.serving.errors import AlreadyExists, Unavailable

NODE = StorageNode(metadata=ObjectMeta(name="node-a"))


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    async with ApiServer().running() as server:
        yield server


@pytest.fixture
async def api(server: ApiServer, tmp_path: Path) -> AsyncIterator[Api]:
    async with connected(str(server.kubeconfig(tmp_path / "kubeconfig"))) as api:
        yield api


@pytest.fixture
def objects(api: Api) -> Objects:
    return Objects(api, "test")


async def test_an_object_that_is_not_there_is_none(objects: Objects) -> None:
    """Absence is an answer, and deleting what is not there is success."""
    assert await objects.get(StorageNode, "node-a") is None
    await objects.delete(StorageNode, "node-a")


async def test_a_refusal_has_the_words_of_the_api_server(objects: Objects) -> None:
    """What is wrong, and with which object."""
    await objects.create(NODE)
    with pytest.raises(AlreadyExists, match=r'^StorageNode node-a: "node-a" already exists$'):
        await objects.create(NODE)


async def test_an_api_server_that_is_away_can_be_asked_again(tmp_path: Path) -> None:
    """It is an error of the moment."""
    async with ApiServer().running() as server:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
    async with connected(str(kubeconfig)) as api:
        with pytest.raises(Unavailable, match=r"does not answer.*retry"):
            await Objects(api, "test").get(StorageNode, "node-a")


async def test_a_watch_goes_on_where_a_list_ended(server: ApiServer, objects: Objects) -> None:
    """What the list has is not told again; what comes later is, as it is made."""
    await server.put("storageclusters", cluster())
    page = await objects.list(StorageCluster, "")
    assert [body["metadata"]["name"] for body in page.bodies] == [CLUSTER.partition("/")[2]]
    async with asyncio.timeout(10), aclosing(objects.watch(StorageCluster, "", page.version, 60)) as events:
        later = cluster()
        later["metadata"]["name"] = "later"
        await server.put("storageclusters", later)
        event = await anext(events)
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "later")


async def test_an_informer_goes_on_when_a_watch_ends_or_has_expired(
    server: ApiServer, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended without a word, by an error, refused, or silent for ever: later objects are seen all the same."""
    monkeypatch.setattr(informer, "RETRY_SECONDS", 0)
    monkeypatch.setattr(kube_api, "QUIET_SECONDS", 0.2)
    server.watch_faults = ["end", "ERROR", "silence", "410"]
    clusters = informer.Informer(objects, StorageCluster)
    running = asyncio.create_task(clusters.run())
    try:
        await eventually(lambda: not server.watch_faults)
        await server.put("storageclusters", cluster())
        assert await clusters.wait_for(CLUSTER, lambda found: found is not None, 10)
    finally:
        running.cancel()


async def test_a_report_is_no_new_wish(server: ApiServer, objects: Objects) -> None:
    """Who waits for a status sees it; who does what a spec wants is told of specs only."""
    told: list[str] = []
    clusters = informer.Informer(objects, StorageCluster, changed=told.append)
    running = asyncio.create_task(clusters.run())
    try:
        await asyncio.wait_for(clusters.synced.wait(), 10)
        await server.put("storageclusters", cluster())
        namespace, _, name = CLUSTER.partition("/")
        await server.patch_status("storageclusters", name, {"observedGeneration": 7}, namespace)
        await clusters.wait_for(
            CLUSTER, lambda found: found is not None and found.status.observed_generation == 7, 10
        )
    finally:
        running.cancel()
    assert told == [CLUSTER]


async def test_an_object_of_a_newer_version_hides_no_other(server: ApiServer, objects: Objects) -> None:
    """Listed or watched, it is left alone."""

    async def put(name: str, **spec: object) -> None:
        body = cluster()
        body["metadata"]["name"] = name
        body["spec"] |= spec
        await server.put("storageclusters", body)

    await put("odd", engine="of the future")
    await put("listed")
    clusters = informer.Informer(objects, StorageCluster)
    running = asyncio.create_task(clusters.run())
    try:
        await clusters.wait_for("storage/listed", lambda found: found is not None, 10)
        await put("odder", engine="of the future")
        await put("watched")
        await clusters.wait_for("storage/watched", lambda found: found is not None, 10)
    finally:
        running.cancel()
    assert clusters.items.keys() == {"storage/listed", "storage/watched"}


@pytest.mark.parametrize(
    ("spec", "mapped"), [({}, False), ({"hostUsers": True}, False), ({"hostUsers": False}, True)]
)
async def test_a_pod_says_whether_it_has_users_of_its_own(
    server: ApiServer, api: Api, spec: Body, mapped: bool
) -> None:
    """`hostUsers: false` is read from the pod itself."""
    await server.put("pods", {"metadata": {"namespace": "ns", "name": "pod-a"}, "spec": spec})
    assert await has_user_namespace(api, Pod(key="uid", namespace="ns", name="pod-a")) is mapped


async def test_an_unknown_pod_has_no_users_of_its_own(api: Api) -> None:
    """The mirror of a static pod may come later than its volumes; it cannot have them."""
    assert await has_user_namespace(api, Pod(key="uid", namespace="ns", name="gone")) is False
