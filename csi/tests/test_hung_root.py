"""A disk that hangs, really (fsfreeze): its own volumes wait with a deadline, and nobody else at all."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from csikit.daemon import Daemon
from csikit.waiting import eventually

from kube3fs_csi.node import clusters as clusters_module
from kube3fs_csi.node import mounts
from kube3fs_csi.node.clusters import Clusters, StorageHung, Wanted
from kube3fs_csi.node.lanes import Lanes, Stuck
from kube3fs_csi.node.publisher import Publisher
from kube3fs_csi.node.scratch import EVERYBODY
from kube3fs_csi.node.sessions import Sessions
from kube3fs_csi.node.shm import SharedMemory
from kube3fs_csi.node.state import Pod, Published, Store
from kube3fs_csi.serving.errors import CsiError

CALL_SECONDS = 1.0


class TwoDisks:
    """A node plugin with a good data root and one on a disk that can be frozen."""

    def __init__(self, folder: Path, good: Path, bad: Path) -> None:
        self.folder = folder
        self.bad = bad
        self.daemon = Daemon(folder)
        self.lanes = Lanes(CALL_SECONDS)
        self.clusters = Clusters(folder / "clusters.json", [folder], self.lanes)
        roots = {"ns/good": good / "root", "ns/bad": bad / "root"}
        self.clusters.set({name: Wanted(root, EVERYBODY) for name, root in roots.items()})
        self.sessions = Sessions(self.daemon.socket, lambda: self.publisher.wanted_sessions())
        shm = SharedMemory(folder / "shm")
        self.publisher = Publisher(Store(folder / "published"), self.sessions, self.clusters, shm, self.lanes)

    def scratch(self, cluster: str, name: str) -> Published:
        target = self.folder / "pods" / name / "mount"
        return Published(
            volume_id=name, target=target, kind="scratch", pod=Pod(key=name), cluster=cluster, size=1 << 20
        )

    @contextmanager
    def frozen(self) -> Iterator[None]:
        subprocess.run(["fsfreeze", "-f", str(self.bad)], check=True)
        try:
            yield
        finally:
            subprocess.run(["fsfreeze", "-u", str(self.bad)], check=True)


@pytest.fixture
async def node(tmp_path: Path, make_root: Callable[[str], Path]) -> AsyncIterator[TwoDisks]:
    bad = await asyncio.to_thread(make_root, "ext4")
    node = TwoDisks(tmp_path, tmp_path / "good", bad)
    node.daemon.start()
    running = asyncio.create_task(node.sessions.run())
    await node.clusters.look(20)
    yield node
    running.cancel()
    node.daemon.kill()
    for mount in reversed(mounts.table()):
        if tmp_path in mount.path.parents and mount.path != bad:
            mounts.unmount(mount.path)


async def test_a_hung_disk_holds_up_only_its_own_volumes(node: TwoDisks) -> None:
    """With twelve publishes stuck, volumes of the other disk come and go at once; the stuck are told why."""
    before = node.scratch("ns/good", "before")
    await node.publisher.publish(before)
    with node.frozen():
        stuck = [
            asyncio.create_task(node.publisher.publish(node.scratch("ns/bad", f"stuck-{number}")))
            for number in range(12)
        ]
        await asyncio.sleep(0.1)
        start = time.monotonic()
        await node.publisher.publish(node.scratch("ns/good", "after"))
        await node.publisher.unpublish("before", before.target)
        assert time.monotonic() - start < CALL_SECONDS * 5
        refusals = await asyncio.wait_for(asyncio.gather(*stuck, return_exceptions=True), 30)
    for refused in refusals:
        assert isinstance(refused, Stuck)
        assert "ns/bad" in str(refused)
    for number in range(12):
        gone = node.scratch("ns/bad", f"stuck-{number}")
        await eventually(lambda: len(node.lanes.of("ns/bad", "call")._keys) == 0)
        await node.publisher.unpublish(gone.volume_id, gone.target)
    assert list((node.bad / "root/volumes").iterdir()) == []
    assert node.publisher.store.of_pod("stuck-0") == []


async def test_a_hung_disk_is_reported_and_refused_until_it_answers(
    node: TwoDisks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StorageHung for this cluster alone, from a look that nobody waits for; a later one finds it well."""
    monkeypatch.setattr(clusters_module, "HUNG_SECONDS", 0.3)
    hung = node.clusters.backend("ns/bad")
    with node.frozen():
        monkeypatch.setattr(hung, "space", lambda: (hung.root / "probe").touch())

        async def until_hung() -> None:
            while not node.clusters.all()["ns/bad"].hung:
                await node.clusters.look(0.1)

        await asyncio.wait_for(until_hung(), 20)
        served = node.clusters.all()
        assert (served["ns/bad"].reason, served["ns/bad"].ready) == ("StorageHung", False)
        assert served["ns/good"].ready
        start = time.monotonic()
        with pytest.raises(StorageHung, match="Look at the disk"):
            await node.publisher.publish(node.scratch("ns/bad", "refused"))
        await node.clusters.look(5)
        assert time.monotonic() - start < 2
        monkeypatch.undo()

    async def until_well() -> None:
        while not node.clusters.all()["ns/bad"].ready:
            await node.clusters.look(1)

    await asyncio.wait_for(until_well(), 20)
    assert node.clusters.backend("ns/bad") is hung


async def test_a_pod_leaves_a_hung_disk(node: TwoDisks) -> None:
    """Its mount goes at once, whatever hangs below it; its data is deleted when the disk answers again."""
    leaving = node.scratch("ns/bad", "leaving")
    await node.publisher.publish(leaving)
    with node.frozen():
        with pytest.raises(CsiError, match="ns/bad"):
            await node.publisher.unpublish("leaving", leaving.target)
        assert mounts.mounts_at(leaving.target) == []
    await eventually(lambda: len(node.lanes.of("ns/bad", "call")._keys) == 0)
    await node.publisher.unpublish("leaving", leaving.target)
    assert list((node.bad / "root/volumes").iterdir()) == []
