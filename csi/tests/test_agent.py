"""The node agent with a stand-in API server and real data roots."""

import asyncio
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from csikit.apiserver import ApiServer
from csikit.driver import CLUSTER, NODE

from kube3fs_crds import StorageSnapshot, StorageVolume
from kube3fs_csi.agent.queue import KeyQueue
from kube3fs_csi.agent.volumes import VolumeAgent
from kube3fs_csi.kube.api import connected
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.node.clusters import Clusters, Wanted
from kube3fs_csi.node.lanes import Lanes

MIB = 1 << 20


async def nothing(_name: str) -> None:
    """No pod wants to know."""


async def test_long_copies_hold_up_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many clones are being copied, an empty volume is made at once."""
    lanes = Lanes()
    clusters = Clusters(tmp_path / "clusters.json", [tmp_path], lanes)
    clusters.set({CLUSTER: Wanted(tmp_path / "data")})
    await clusters.look(20)
    backend = clusters.backend(CLUSTER)
    backend.create("source", MIB, None, lambda _done, _total: None)
    end = threading.Event()
    monkeypatch.setattr(backend, "_copy", lambda *_: end.wait(30))
    namespace, name = CLUSTER.split("/")
    spec = {
        "nodeName": NODE,
        "clusterRef": {"namespace": namespace, "name": name},
        "capacityBytes": MIB,
    }
    async with ApiServer().running() as server, connected(str(server.kubeconfig(tmp_path / "kube"))) as api:
        objects = Objects(api, "test")
        volumes = Informer(objects, StorageVolume, "", lambda name: queue.add(name))
        snapshots = Informer(objects, StorageSnapshot)
        agent = VolumeAgent(
            objects,
            volumes,
            snapshots,
            clusters,
            users=lambda _name: (),
            changed=lambda: None,
            grown=nothing,
            deleted=lambda: None,
            lanes=lanes,
        )
        queue = KeyQueue(agent.volume)
        running = [asyncio.create_task(part.run()) for part in (volumes, queue)]
        try:
            for number in range(8):
                clone = {
                    "metadata": {"name": f"clone-{number}"},
                    "spec": spec | {"source": {"volume": "source"}},
                }
                await server.put("storagevolumes", clone)
            await server.put("storagevolumes", {"metadata": {"name": "empty"}, "spec": spec})
            made = await volumes.wait_for(
                "empty", lambda now: now is not None and now.status.capacity_bytes == MIB, 20
            )
            assert made is not None
        finally:
            end.set()
            for task in running:
                task.cancel()


async def test_a_queue_that_has_ended_takes_what_still_comes() -> None:
    """A plugin that is superseded ends its calls: what they add is for its successor to look at."""
    queue = KeyQueue(nothing)
    running = asyncio.create_task(queue.run())
    await asyncio.sleep(0)
    queue.add("before")
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    queue.add("after")
