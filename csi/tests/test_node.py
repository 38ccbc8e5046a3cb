"""The node half without Kubernetes, with the real usrbiod: volumes at targets, and processes that die."""

import asyncio
import json
import os
import resource
import signal
import stat
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from csikit.daemon import Daemon
from csikit.waiting import eventually
from csikit.writer import Writer

from kube3fs_crds import ScratchPolicy
from kube3fs_csi.node import client_library, group, mounts, trees
from kube3fs_csi.node.clusters import Clusters, Wanted
from kube3fs_csi.node.lanes import Lanes
from kube3fs_csi.node.publisher import Publisher, open_volume
from kube3fs_csi.node.scratch import EVERYBODY
from kube3fs_csi.node.sessions import Health, Sessions
from kube3fs_csi.node.shm import SharedMemory
from kube3fs_csi.node.state import Pod, Published, Store
from kube3fs_csi.node.usrbiod import Connection, DaemonError, DaemonGone
from kube3fs_csi.serving.errors import (
    AlreadyExists,
    DeadlineNear,
    Exhausted,
    InvalidArgument,
    NotFound,
    Precondition,
    Unavailable,
)

MIB = 1 << 20
T = TypeVar("T")


class Node:
    """A folder that stands for a node: data root, kubelet's folder, state. Plugins come and go on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.daemon = Daemon(folder)

    def target(self, pod: str, volume: str) -> Path:
        return self.folder / "kubelet/pods" / pod / "volumes/kubernetes.io~csi" / volume / "mount"

    def want(self, pod: str, volume: str, **more: object) -> Published:
        fields = {"kind": "filesystem", "cluster": "ns/fast"} | more
        return Published.model_validate(
            {"volume_id": volume, "target": self.target(pod, volume), "pod": Pod(key=pod)} | fields
        )

    @asynccontextmanager
    async def plugin(
        self, daemon: Daemon | None = None, superseded: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[Publisher]:
        """A node plugin. Leaving it is like SIGKILL: nothing is unmounted, the fds are closed."""
        lanes = Lanes()
        clusters = Clusters(self.folder / "clusters.json", [self.data], lanes)
        clusters.set({"ns/fast": Wanted(self.data, EVERYBODY)})
        await clusters.look(20)
        socket = (daemon or self.daemon).socket
        sessions = Sessions(socket, lambda: publisher.wanted_sessions(), superseded)
        shm = SharedMemory(self.folder / "shm")
        publisher = Publisher(Store(self.folder / "published"), sessions, clusters, shm, lanes)
        await publisher.adopt()
        await publisher.learn_sizes()
        running = asyncio.create_task(sessions.run())
        try:
            yield publisher
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            for name in list(sessions._fds):
                sessions._drop(name)

    async def left_behind(self) -> Published:
        """The volume v1, published for pod-a by a plugin that is gone."""
        want = self.want("pod-a", "v1")
        async with self.plugin() as publisher:
            self.make_volume(publisher, "v1")
            await publisher.publish(want)
        return want

    def make_volume(self, publisher: Publisher, name: str) -> Path:
        backend = publisher.clusters.backend("ns/fast")
        backend.create(name, 16 * MIB, None, lambda _done, _total: None)
        return backend.path("volume", name)

    def mounted(self) -> list[Path]:
        return [mount.path for mount in mounts.table() if self.folder in mount.path.parents]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    node.daemon.start()
    yield node
    node.daemon.kill()
    for path in reversed(node.mounted()):
        mounts.unmount(path)


@pytest.fixture
def successor(node: Node) -> Iterator[Daemon]:
    """The usrbiod of a second pod on the node."""
    daemon = Daemon(node.folder, "successor")
    yield daemon
    daemon.kill()


async def in_thread(work: Callable[[], T]) -> T:
    """File access through the mount, with a deadline."""
    return await asyncio.wait_for(asyncio.to_thread(work), 20)


def space(target: Path) -> tuple[int, int]:
    """Bytes that `df` shows: all and free."""
    stat = os.statvfs(target)
    return stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize


@contextmanager
def room_for_fds(count: int) -> Iterator[None]:
    """Lets this process open `count` files more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(1) for _ in range(count + 1)]
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free[-1], limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_a_published_volume_is_a_3fs_mount(node: Node) -> None:
    """A pod writes through a mount of type fuse.hf3fs with 3fs-virt; unpublishing leaves nothing."""
    async with node.plugin() as publisher:
        data = node.make_volume(publisher, "v1")
        want = node.want("pod-a", "v1")
        await publisher.publish(want)
        (mount,) = mounts.mounts_at(want.target)
        assert (mount.fstype, mount.source) == ("fuse.hf3fs", "kube3fs")
        assert {"nosuid", "nodev"} <= mount.options
        await in_thread(lambda: (want.target / "file").write_bytes(b"written"))
        assert (data / "file").read_bytes() == b"written"
        assert await in_thread((want.target / "3fs-virt").is_dir)
        await publisher.unpublish("v1", want.target)
        assert not want.target.exists()
        assert node.mounted() == []
        assert publisher.store.all() == []
        await eventually(lambda: node.daemon.state_files() == [])
        assert publisher.sessions._fds == {}


async def test_republish_adds_no_second_mount(node: Node) -> None:
    """Publishing again is success and changes nothing; with other parameters it is refused."""
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        want = node.want("pod-a", "v1")
        for _ in range(2):
            await publisher.publish(want)
        assert len(mounts.mounts_at(want.target)) == 1
        with pytest.raises(AlreadyExists, match="other parameters"):
            await publisher.publish(node.want("pod-a", "v1", read_only=True))
        await publisher.unpublish("v1", want.target)
        await publisher.unpublish("v1", want.target)


async def test_a_failed_publish_leaves_nothing(node: Node) -> None:
    """A volume that is not there is an error, and neither a mount nor a folder nor a record stays behind."""
    async with node.plugin() as publisher:
        want = node.want("pod-a", "missing")
        with pytest.raises(NotFound, match="no volume missing"):
            await publisher.publish(want)
        assert not want.target.exists()
        assert node.mounted() == []
        assert publisher.store.all() == []


async def test_shared_memory_stays_with_a_volume_that_comes_as_the_last_one_goes(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's sessions never have a tmpfs that is gone."""
    async with node.plugin() as publisher:
        first, second = node.want("pod-a", "v1"), node.want("pod-a", "v2")
        for want in (first, second):
            node.make_volume(publisher, want.volume_id)
        await publisher.publish(first)
        remove, removing, go_on = publisher.shm.remove, threading.Event(), threading.Event()

        def remove_slowly(pod_key: str) -> None:
            removing.set()
            assert go_on.wait(20)
            remove(pod_key)

        monkeypatch.setattr(publisher.shm, "remove", remove_slowly)
        going = asyncio.create_task(publisher.unpublish("v1", first.target))
        await eventually(removing.is_set)
        coming = asyncio.create_task(publisher.publish(second))
        await asyncio.wait([coming], timeout=0.5)  # it would be done by now if it did not wait
        go_on.set()
        await asyncio.gather(going, coming)
        assert len(mounts.mounts_at(node.folder / "shm/pod-a")) == 1


async def test_a_scratch_volume_of_an_unknown_cluster_leaves_nothing(node: Node) -> None:
    """A cluster that the node does not serve is refused before anything is written; unpublish works."""
    async with node.plugin() as publisher:
        want = node.want("pod-a", "csi-1", kind="scratch", size=MIB, cluster="no/such")
        with pytest.raises(Precondition, match="does not serve"):
            await publisher.publish(want)
        assert publisher.store.all() == []
        await publisher.unpublish("csi-1", want.target)


async def test_a_read_only_volume_refuses_writes(node: Node) -> None:
    """A volume published read-only cannot be written."""
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        want = node.want("pod-a", "v1", read_only=True)
        await publisher.publish(want)
        with pytest.raises(OSError, match="Read-only"):
            await in_thread((want.target / "file").touch)
        await publisher.unpublish("v1", want.target)


async def test_a_group_may_write(node: Node) -> None:
    """The pod's group may write to a new volume and to what is in it, and new files become the group's."""
    async with node.plugin() as publisher:
        data = node.make_volume(publisher, "v1")
        (data / "folder").mkdir(mode=0o700)
        (data / "folder/old").write_bytes(b"old")
        (data / "folder/old").chmod(0o600)
        (data / "link").symlink_to("/etc/passwd")
        want = node.want("pod-a", "v1", group=4242)
        await publisher.publish(want)
        script = "echo new > folder/old && touch folder/own && stat -c %g folder/own"
        shell = ["setpriv", "--reuid=1000", "--regid=1000", "--groups=4242", "sh", "-c", script]
        done = await asyncio.to_thread(
            subprocess.run, shell, cwd=want.target, capture_output=True, text=True, timeout=20, check=True
        )
        assert done.stdout == "4242\n"
        assert Path("/etc/passwd").stat().st_gid == 0
        await publisher.unpublish("v1", want.target)
        with pytest.raises(NotFound, match="no volume v2"):
            await publisher.publish(node.want("pod-a", "v2", group=4242))


async def test_a_group_gets_what_root_left_to_others(node: Node) -> None:
    """At each start of a pod; what the group's own members keep to themselves stays so, over many files."""
    async with node.plugin() as publisher:
        data = node.make_volume(publisher, "v1")
        first, second = (node.want(f"pod-{name}", "v1", group=4000) for name in ("a", "b"))
        await publisher.publish(first)
        (data / "private").mkdir(mode=0o700)
        (data / "unpacked").mkdir(mode=0o700)
        (data / "unpacked/file").write_bytes(b"of root")
        for path in (data / "unpacked", data / "unpacked/file"):
            os.chown(path, 0, 0)
            path.chmod(0o700)
        await publisher.publish(second)
        assert (data / "unpacked/file").stat().st_gid == 4000
        assert stat.S_IMODE((data / "unpacked/file").stat().st_mode) == 0o760
        assert stat.S_IMODE((data / "unpacked").stat().st_mode) == 0o2770
        assert (data / "private").stat().st_gid == 4000
        assert stat.S_IMODE((data / "private").stat().st_mode) & 0o777 == 0o700
        for want in (first, second):
            await publisher.unpublish("v1", want.target)


async def test_a_volume_that_takes_long_to_hand_over_goes_on_between_calls(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pod's event says how far it is, others are mounted meanwhile, and the last call finds it done."""
    may_end = threading.Event()

    def slow(_path: Path, _group: int, progress: Callable[[int], None]) -> None:
        progress(1234)
        assert may_end.wait(20)

    monkeypatch.setattr(trees, "give_to_group", slow)
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        node.make_volume(publisher, "v2")
        publisher._groups._call_seconds = 0.1
        want = node.want("pod-a", "v1", group=4000)
        for _ in range(2):
            with pytest.raises(DeadlineNear, match="1234 files so far"):
                await publisher.publish(want)
        other = node.want("pod-b", "v2")
        await publisher.publish(other)
        may_end.set()
        publisher._groups._call_seconds = 20
        await publisher.publish(want)
        for done in (want, other):
            await publisher.unpublish(done.volume_id, done.target)


async def test_what_a_group_had_before_delays_its_pods_little(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod whose group has the volume starts although looking through all of it takes longer, or fails."""
    may_end = threading.Event()

    def slow(_path: Path, _group: int, _progress: Callable[[int], None]) -> None:
        assert may_end.wait(20)
        raise Precondition("too deep")

    monkeypatch.setattr(group, "AGAIN_SECONDS", 0.1)
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        first, second, third = (node.want(f"pod-{name}", "v1", group=4000) for name in ("a", "b", "c"))
        await publisher.publish(first)
        monkeypatch.setattr(trees, "give_to_group", slow)
        await publisher.publish(second)
        may_end.set()
        await publisher.publish(third)
        for done in (first, second, third):
            await publisher.unpublish("v1", done.target)


@pytest.mark.parametrize("order", ["shm first", "shm last"])
async def test_the_volumes_of_a_pod_share_its_tmpfs_and_nobody_elses(node: Node, order: str) -> None:
    """Sessions get the tmpfs that the pod sees at /dev/shm, in whichever order the kubelet publishes."""
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        wants = [node.want("pod-a", "v1"), node.want("pod-a", "shm", kind="shm", size=8 * MIB, cluster="")]
        for want in wants if order == "shm last" else reversed(wants):
            await publisher.publish(want)
        other = node.want("pod-b", "v1")
        await publisher.publish(other)
        shown = wants[1].target.stat()
        fds = publisher.sessions._fds
        assert os.fstat(fds[wants[0].session]["shm"]).st_dev == shown.st_dev
        assert os.fstat(fds[other.session]["shm"]).st_dev != shown.st_dev
        size = os.statvfs(wants[1].target)
        assert size.f_blocks * size.f_frsize == 8 * MIB
        assert shown.st_mode & 0o7777 == 0o1777
        semaphores = [path.stat() for path in wants[1].target.glob("sem.*")]
        assert len(semaphores) == 3
        assert all(stat.st_blocks for stat in semaphores), "clients post what the daemon does not wait for"
        (mount,) = mounts.mounts_at(wants[1].target)
        assert {"nosuid", "nodev", "noexec"} <= mount.options
        for want in (*wants, other):
            await publisher.unpublish(want.volume_id, want.target)
        assert node.mounted() == []


async def test_a_session_without_room_for_its_semaphores_is_refused(node: Node) -> None:
    """A pod with full shared memory gets an error, not a volume that it can hardly wake; room mends it."""
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        shm = node.want("pod-a", "shm", kind="shm", size=MIB, cluster="")
        await publisher.publish(shm)
        (shm.target / "everything").write_bytes(bytes(MIB))
        want = node.want("pod-a", "v1")
        with pytest.raises(DaemonError, match="No space left"):
            await publisher.publish(want)
        assert [path.name for path in shm.target.iterdir()] == ["everything"]
        (shm.target / "everything").unlink()
        await publisher.publish(want)
        await publisher.unpublish("v1", want.target)


async def test_a_pod_has_one_size_of_shared_memory(node: Node) -> None:
    """A second volume of kind shm shows the same tmpfs, and cannot have another size."""
    async with node.plugin() as publisher:
        one, same, other = (
            node.want("pod-a", name, kind="shm", size=size, cluster="")
            for name, size in (("one", MIB), ("same", MIB), ("other", 2 * MIB))
        )
        await publisher.publish(one)
        await publisher.publish(same)
        assert one.target.stat().st_dev == same.target.stat().st_dev
        with pytest.raises(InvalidArgument, match="same size"):
            await publisher.publish(other)


async def test_huge_pages_are_an_option_of_the_tmpfs(node: Node) -> None:
    """`huge` reaches the mount."""
    async with node.plugin() as publisher:
        want = node.want("pod-a", "shm", kind="shm", size=8 * MIB, huge="within_size", cluster="")
        await publisher.publish(want)
        (mount,) = mounts.mounts_at(want.target)
        assert "huge=within_size" in mount.super_options


async def test_the_client_library_is_shown_read_only(node: Node) -> None:
    """A pod sees the library and cannot change it, whatever its runtime does; unused versions go."""
    image = node.folder / "image"
    image.mkdir()
    (image / "libusrbio.so").write_bytes(b"\x7fELF")
    library = client_library.install(image, node.folder / "client", [])
    assert client_library.install(image, node.folder / "client", []) == library
    async with node.plugin() as publisher:
        want = node.want("pod-a", "client", kind="client", source=library, cluster="")
        await publisher.publish(want)
        assert (want.target / "libusrbio.so").read_bytes() == b"\x7fELF"
        remount = ["mount", "-o", "remount,bind,rw", str(want.target)]  # as container runtimes do
        await asyncio.to_thread(subprocess.run, remount, check=True)
        with pytest.raises(OSError, match="Read-only"):
            (want.target / "new").touch()
        await publisher.unpublish("client", want.target)
        assert (library / "libusrbio.so").exists()
    (image / "libusrbio.so").write_bytes(b"\x7fELF, newer")
    assert client_library.install(image, node.folder / "client", [library]) != library
    assert (library / "libusrbio.so").read_bytes() == b"\x7fELF"
    client_library.install(image, node.folder / "client", [])
    assert not library.exists()


async def test_a_pod_keeps_the_client_library_that_it_has(node: Node) -> None:
    """An upgrade brings another one: the kubelet's next call succeeds, and so does one after a reboot."""
    old, new = node.folder / "old", node.folder / "new"
    for version in (old, new):
        version.mkdir()
        (version / version.name).touch()
    want = node.want("pod-a", "client", kind="client", source=old, cluster="")
    async with node.plugin() as publisher:
        await publisher.publish(want)
        want = want.model_copy(update={"source": new})
        await publisher.publish(want)
        assert [path.name for path in want.target.iterdir()] == ["old"]
        mounts.unmount(want.target)  # as a reboot does
        await publisher.publish(want)
        assert [path.name for path in want.target.iterdir()] == ["new"]
        await publisher.unpublish("client", want.target)


async def test_a_scratch_volume_lives_as_long_as_its_pod(node: Node) -> None:
    """A scratch volume is made with its pod, survives the plugin, and is deleted with the pod."""
    want = node.want("pod-a", "csi-1234", kind="scratch", size=8 * MIB)
    async with node.plugin() as publisher:
        await publisher.publish(want)
        await in_thread(lambda: (want.target / "file").write_bytes(b"kept"))
    async with node.plugin() as publisher:
        assert await in_thread((want.target / "file").read_bytes) == b"kept"
        deleted = asyncio.Event()
        publisher.deleted = deleted.set
        await publisher.unpublish("csi-1234", want.target)
        backend = publisher.clusters.backend("ns/fast")
        assert backend.volumes() == []
        assert deleted.is_set()
        backend.empty_trash()
        assert list((node.data / "trash").iterdir()) == []


async def test_a_killed_daemon_is_replaced_under_open_files(node: Node) -> None:
    """The plugin hands fds to the next usrbiod: a file that was open reads on, new ones open."""
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        want = node.want("pod-a", "v1")
        await publisher.publish(want)
        with Writer(want.target / "file") as pod:
            for word in "one", "two", "three":
                await in_thread(lambda word=word: pod.write(word))
                node.daemon.kill()
                await eventually(lambda: publisher.health(want) is Health.WAITING)
                assert not publisher.sessions.daemon.healthy
                await in_thread(node.daemon.start)
                await eventually(lambda: publisher.health(want) is Health.SERVED)
            await in_thread(lambda: pod.write("four"))
        assert await in_thread((want.target / "file").read_bytes) == b"onetwothreefour"


async def test_a_restarted_plugin_gets_the_fds_back(node: Node) -> None:
    """A new plugin takes the fds from usrbiod, and can then hand them to usrbiod's successor."""
    want = node.want("pod-a", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
    async with node.plugin() as publisher:
        await eventually(lambda: publisher.health(want) is Health.SERVED)
        node.daemon.kill()
        node.daemon.start()
        await in_thread(lambda: (want.target / "file").write_bytes(b"served"))
        await publisher.publish(want)
        assert len(mounts.mounts_at(want.target)) == 1


async def test_many_scratch_volumes_at_once_get_no_more_than_is_allowed(node: Node) -> None:
    """Of twelve pods that come together as many start as fit; those that end make room for the next."""
    async with node.plugin() as publisher:
        policy = ScratchPolicy(namespaces=["*"], max_per_node="3Mi", max_per_volume="2Mi")
        publisher.clusters.set({"ns/fast": Wanted(node.data, policy)})
        await publisher.sessions.wait_up(20)
        wants = [node.want(f"pod-{n}", f"csi-{n}", kind="scratch", size=MIB) for n in range(12)]
        results = await asyncio.gather(*map(publisher.publish, wants), return_exceptions=True)
        refused = [result for result in results if result is not None]
        assert len(refused) == 9
        assert {type(result) for result in refused} == {Exhausted}
        assert len(publisher.store.all()) == len(list((node.data / "volumes").iterdir())) == 3
        started = next(want for want, result in zip(wants, results, strict=True) if result is None)
        await publisher.unpublish(started.volume_id, started.target)
        await publisher.publish(node.want("pod-next", "csi-next", kind="scratch", size=MIB))
        for record in publisher.store.all():
            await publisher.unpublish(record.volume_id, record.target)


async def test_a_pod_keeps_the_scratch_volume_that_it_has(node: Node) -> None:
    """When the cluster allows none any more: published again, also after plugin and usrbiod died together."""
    want = node.want("pod-a", "csi-1", kind="scratch", size=MIB)
    async with node.plugin() as publisher:
        await publisher.publish(want)
        publisher.clusters.set({"ns/fast": Wanted(node.data)})
        await publisher.publish(want)
        with pytest.raises(Precondition, match=r"set spec\.scratch"):
            await publisher.publish(node.want("pod-b", "csi-2", kind="scratch", size=MIB))
    node.daemon.kill()
    node.daemon.start()
    async with node.plugin() as publisher:
        publisher.clusters.set({"ns/fast": Wanted(node.data)})
        await publisher.publish(want)
        await in_thread(lambda: (want.target / "file").touch())
        await publisher.unpublish("csi-1", want.target)


@pytest.mark.parametrize("kind", ["filesystem", "scratch"])
async def test_a_volume_shows_its_own_size(node: Node, kind: str) -> None:
    """`df` in a pod shows the volume's size and use, also after usrbiod or the plugin was killed."""
    want = node.want("pod-a", "v1", kind=kind, size=16 * MIB if kind == "scratch" else 0)
    async with node.plugin() as publisher:
        if kind == "filesystem":
            (node.make_volume(publisher, "v1") / "file").write_bytes(bytes(MIB))
        await publisher.publish(want)
        total, free = await in_thread(lambda: space(want.target))
        assert total == 16 * MIB
        assert free == total or kind == "filesystem"  # that is being measured now
        await in_thread(lambda: (want.target / "file").write_bytes(bytes(MIB)))
        used = (await publisher.measure(want)).used
        assert used >= MIB
        assert await in_thread(lambda: space(want.target)) == (16 * MIB, 16 * MIB - used)
        node.daemon.kill()
        node.daemon.start()
        assert await in_thread(lambda: space(want.target)) == (16 * MIB, 16 * MIB - used)
    async with node.plugin() as publisher:
        await publisher.sessions.wait_up(10)
        assert await in_thread(lambda: space(want.target)) == (16 * MIB, 16 * MIB - used)
        node.daemon.kill()
        node.daemon.start()  # nobody has measured since the plugin was restarted
        assert await in_thread(lambda: space(want.target)) == (16 * MIB, 16 * MIB)


async def test_a_mount_takes_the_place_of_one_that_was_given_up(node: Node) -> None:
    """The session of an attach whose answer was lost is there still: the new mount is served, and kept."""
    want = node.want("pod-a", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
        backend = publisher.clusters.backend("ns/fast")
        fds = publisher._mount(want) | {"backing": open_volume(backend, want).fd}
        await publisher.sessions.attach(publisher._config(want, mounts.fuse_devices()), fds)
        node.daemon.kill()
        node.daemon.start()
        await in_thread(lambda: (want.target / "file").write_bytes(b"written"))
        await eventually(lambda: publisher.health(want) is Health.SERVED)
        await publisher.unpublish("v1", want.target)
        assert node.mounted() == []


async def test_a_node_plugin_that_was_rolled_back_keeps_the_mounts(node: Node) -> None:
    """What a newer one wrote is more than the older one knows: the pod has its volume all the same."""
    want = await node.left_behind()
    (record,) = (node.folder / "published").glob("*.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"color": "red"}))
    async with node.plugin() as publisher:
        await publisher.sessions.wait_up(10)
        await in_thread(lambda: (want.target / "file").write_bytes(b"written"))
        await publisher.unpublish("v1", want.target)
        assert node.mounted() == []


async def test_a_volume_shows_its_use_before_the_kubelet_asks(node: Node) -> None:
    """A pod that gets a volume with data in it sees soon what is left."""
    async with node.plugin() as publisher:
        (node.make_volume(publisher, "v1") / "file").write_bytes(bytes(MIB))
        want = node.want("pod-a", "v1")
        await publisher.publish(want)
        await eventually(lambda: space(want.target)[1] <= 15 * MIB)


async def test_pods_start_while_volumes_are_measured(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many measurements do not come to an end."""
    end = threading.Event()
    async with node.plugin() as publisher:
        backend = publisher.clusters.backend("ns/fast")
        monkeypatch.setattr(backend, "usage", lambda _name: end.wait(20))
        try:
            for number in range(6):  # more than there are threads
                node.make_volume(publisher, f"v{number}")
                async with asyncio.timeout(10):
                    await publisher.publish(node.want(f"pod-{number}", f"v{number}"))
        finally:
            end.set()


async def test_every_pod_sees_that_a_volume_has_grown(node: Node) -> None:
    """A volume that has grown shows its new size in all its pods, and others keep theirs."""
    async with node.plugin() as publisher:
        wants = [node.want(pod, volume) for pod, volume in (("a", "v1"), ("b", "v1"), ("c", "v2"))]
        for volume in "v1", "v2":
            node.make_volume(publisher, volume)
        for want in wants:
            await publisher.publish(want)
        publisher.clusters.backend("ns/fast").resize("v1", 32 * MIB)
        await publisher.grown("v1")
        sizes = [(await in_thread(lambda want=want: space(want.target)))[0] for want in wants]
        assert sizes == [32 * MIB, 32 * MIB, 16 * MIB]


async def test_a_usrbiod_without_the_op_space_serves_as_before(node: Node) -> None:
    """An older usrbiod is not told of sizes, which it would refuse: the file system below answers."""
    want = node.want("pod-a", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.sessions.wait_up(10)
        publisher.sessions._ops -= {"space"}
        await publisher.publish(want)
        await publisher.measure(want)
        assert (await in_thread(lambda: space(want.target)))[0] == space(node.data)[0]


async def test_a_pod_that_goes_while_usrbiod_is_away_takes_no_other_with_it(node: Node) -> None:
    """Its state goes when usrbiod is back; the other session goes on, also after the plugin was restarted."""
    gone, stays = node.want("pod-a", "v1"), node.want("pod-b", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        for want in gone, stays:
            await publisher.publish(want)
        node.daemon.kill()
        await eventually(lambda: publisher.health(stays) is Health.WAITING)
        await publisher.unpublish("v1", gone.target)
        node.daemon.start()
        await publisher.sessions.wait_up(10)
        assert node.daemon.state_files() == [f"{stays.session}.state"]
        await in_thread(lambda: (stays.target / "file").write_bytes(b"served"))
    async with node.plugin() as publisher:
        await publisher.sessions.wait_up(10)
        node.daemon.kill()
        node.daemon.start()
        assert await in_thread((stays.target / "file").read_bytes) == b"served"
        await publisher.unpublish("v1", stays.target)
        await eventually(lambda: node.daemon.state_files() == [])


async def test_a_state_that_cannot_be_taken_over_costs_its_own_session_and_is_told(node: Node) -> None:
    """The other sessions go on; health gives the daemon's reason, and publishing mounts anew."""
    lost, stays = node.want("pod-a", "v1"), node.want("pod-b", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        for want in lost, stays:
            await publisher.publish(want)
        node.daemon.kill()
        await eventually(lambda: not publisher.sessions.daemon.healthy)
        node.daemon.spoil(lost.session)
        node.daemon.start()
        await publisher.sessions.wait_up(10)
        assert publisher.health(lost) is Health.DEAD
        assert "it is no state file of usrbiod" in publisher.why(lost)
        assert list(publisher.sessions.daemon.unserved) == [lost.session]
        await in_thread(lambda: (stays.target / "file").write_bytes(b"served"))
        await publisher.publish(lost)
        assert await in_thread((lost.target / "file").read_bytes) == b"served"
        assert not publisher.sessions.daemon.unserved


async def test_a_session_that_cannot_be_resumed_for_lack_of_space_waits(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody gives the mount up: it is served as soon as the daemon can."""
    monkeypatch.setattr("kube3fs_csi.node.sessions._AGAIN_SECONDS", 0.05)
    want = node.want("pod-a", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
        real = Connection.request
        full = True

        async def request(self: Connection, op: str, *args: Any, **fields: Any) -> dict[str, Any]:
            if op == "attach" and full:
                raise DaemonError(op, "failed", "opening the state: No space left on device (os error 28)")
            return await real(self, op, *args, **fields)

        monkeypatch.setattr(Connection, "request", request)
        node.daemon.kill()
        await eventually(lambda: not publisher.sessions.daemon.healthy)
        node.daemon.start()
        await publisher.sessions.wait_up(10)
        assert publisher.health(want) is Health.WAITING
        assert "No space left" in publisher.why(want)
        with pytest.raises(Unavailable, match="No space left"):
            await publisher.publish(want)
        full = False
        await eventually(lambda: publisher.health(want) is Health.SERVED)
        await in_thread(lambda: (want.target / "file").write_bytes(b"served"))


@pytest.mark.parametrize("first", ["plugin", "daemon"])
async def test_both_killed_at_once(node: Node, first: str) -> None:
    """Nobody holds the mount: the health says so, access fails with ENOTCONN, and publishing mounts anew."""
    want = node.want("pod-a", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
        if first == "daemon":
            node.daemon.kill()
    node.daemon.kill()
    async with node.plugin() as publisher:
        node.daemon.start()
        await eventually(lambda: publisher.health(want) is Health.DEAD)
        with pytest.raises(OSError, match="not connected"):
            await in_thread((want.target / "file").stat)
        await publisher.publish(want)
        assert publisher.health(want) is Health.SERVED
        await in_thread((want.target / "file").touch)
        assert len(mounts.mounts_at(want.target)) == 1


async def test_an_upgrade_hands_over_to_the_successors(node: Node) -> None:
    """A new plugin with a new usrbiod drains the old one and serves its mounts; the old plugin stays idle."""
    want, late = node.want("pod-a", "v1"), node.want("pod-b", "v1")
    successor = Daemon(node.folder, "successor")
    over = False
    async with node.plugin(superseded=lambda: over) as old:
        node.make_volume(old, "v1")
        await old.publish(want)
        with Writer(want.target / "file") as pod:
            await in_thread(lambda: pod.write("before"))
            await in_thread(successor.start)
            over = True
            async with node.plugin(successor) as new:
                await eventually(lambda: new.health(want) is Health.SERVED)
                node.daemon.kill()
                await in_thread(lambda: pod.write("after"))
                await eventually(lambda: old.sessions.daemon.message == "a newer node plugin has taken over")
                await new.publish(late)
                assert await in_thread((late.target / "file").read_bytes) == b"beforeafter"
    successor.kill()


async def test_a_plugin_that_cannot_serve_takes_nothing_over(
    node: Node, successor: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a new plugin and its usrbiod are of two releases, the old usrbiod goes on to serve."""
    want = await node.left_behind()
    await in_thread(successor.start)
    monkeypatch.setattr("kube3fs_csi.node.sessions.PROTOCOL", 2)
    async with node.plugin(successor) as new:
        await eventually(lambda: "it speaks protocol 1" in new.sessions.daemon.message)
        await in_thread(lambda: (want.target / "file").write_bytes(b"served"))


async def test_a_predecessor_that_does_not_answer_is_not_given_up(
    node: Node, successor: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the fds: its mounts wait until it hands them over, however often it must be asked."""
    want = await node.left_behind()
    await in_thread(successor.start)
    node.daemon.signal(signal.SIGSTOP)
    async with node.plugin(successor) as new:
        with monkeypatch.context() as patch:
            patch.setattr("kube3fs_csi.node.usrbiod._DRAIN_SECONDS", 0.2)
            await eventually(lambda: "no answer to drain" in new.sessions.daemon.message)
        assert new.health(want) is Health.WAITING
        assert node.daemon.socket.exists()
        node.daemon.signal(signal.SIGCONT)
        await eventually(lambda: new.health(want) is Health.SERVED)
        node.daemon.kill()
        await in_thread(lambda: (want.target / "file").write_bytes(b"served"))


async def test_a_usrbiod_that_was_drained_in_vain_is_replaced(node: Node, successor: Daemon) -> None:
    """An upgrade that was taken back: the old plugin ends its usrbiod, and the next one serves the pods."""
    want = await node.left_behind()
    await in_thread(successor.start)
    async with node.plugin(successor) as new:
        await eventually(lambda: new.health(want) is Health.SERVED)
    successor.kill()
    async with node.plugin() as again:
        await eventually(node.daemon.has_ended)
        assert again.health(want) is Health.WAITING
        assert not again.sessions.daemon.healthy
        await in_thread(node.daemon.start)
        await in_thread(lambda: (want.target / "file").write_bytes(b"served"))
        await again.sessions.wait_up(10)
        assert again.health(want) is Health.SERVED


async def test_a_superseded_plugin_leaves_its_drained_usrbiod_alone(node: Node) -> None:
    """The successor may not have the fds yet."""
    async with await Connection.open(node.daemon.socket) as control:
        await control.request("drain")
    answers = iter([False])
    async with node.plugin(superseded=lambda: next(answers, True)) as old:
        await eventually(lambda: old.sessions.daemon.message == "a newer node plugin has taken over")
        assert not node.daemon.has_ended()


async def test_an_fd_that_did_not_fit_is_got_later(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """A plugin that may open no more files goes on; with room again, the file survives usrbiod."""
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        want = node.want("pod-a", "v1", passthrough=False)
        await publisher.publish(want)
        await eventually(lambda: not publisher._measuring)
        with Writer(want.target / "file") as pod:
            await in_thread(lambda: pod.write("open"))
            with room_for_fds(0):
                await in_thread((want.target / "file").unlink)
                await eventually(lambda: "RLIMIT_NOFILE" in caplog.text)
                await eventually(lambda: "Too many open files" in caplog.text)  # for a new connection
                assert not publisher.sessions.daemon.healthy
            await publisher.sessions.wait_up(10)
            node.daemon.kill()
            node.daemon.start()
            await in_thread(lambda: pod.write("kept"))


async def test_fds_that_came_without_the_others_are_closed(node: Node) -> None:
    """A plugin that is restarted with too little room for a session says so, and leaks nothing."""
    want = node.want("pod-a", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
        await eventually(lambda: not publisher._measuring)
    before = len(list(Path("/proc/self/fd").iterdir()))
    async with node.plugin() as publisher:
        with room_for_fds(3):  # two connections, and one fd of three
            await eventually(lambda: "RLIMIT_NOFILE" in publisher.sessions.daemon.message)
        await publisher.sessions.wait_up(10)
        assert publisher.health(want) is Health.SERVED
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_a_session_that_stays_busy_does_not_end_the_plugin(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plugin says that usrbiod works on it, and ends it as soon as it can."""
    want = await node.left_behind()
    for record in (node.folder / "published").iterdir():
        record.unlink()
    request, busy = Connection.request, True

    async def refuse_while_busy(self: Connection, op: str, *passed: Any, **fields: Any) -> Any:
        if busy and op == "detach":
            raise DaemonError(op, "busy", "another request works on the session")
        return await request(self, op, *passed, **fields)

    monkeypatch.setattr(Connection, "request", refuse_while_busy)
    monkeypatch.setattr("kube3fs_csi.node.sessions._DETACH_SECONDS", 0.1)
    async with node.plugin() as publisher:
        await eventually(lambda: "another request works on" in publisher.sessions.daemon.message)
        busy = False
        await publisher.sessions.wait_up(10)
        assert node.daemon.state_files() == []
        await publisher.unpublish("v1", want.target)


async def test_leftovers_of_a_dead_plugin_are_cleaned_up(node: Node) -> None:
    """A session and a tmpfs that no record knows go away at start, and so does what the kubelet forgot."""
    want = node.want("pod-a", "v1")
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
        SharedMemory(node.folder / "shm").ensure("pod-gone")
    for record in (node.folder / "published").iterdir():
        record.unlink()
    async with node.plugin() as publisher:
        await publisher.sessions.wait_up(10)
        assert node.daemon.state_files() == []
        await publisher.unpublish("v1", want.target)
        assert node.mounted() == []


async def test_without_a_daemon_publishing_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that is away is an error that can be retried, and unpublishing works without it."""
    monkeypatch.setattr("kube3fs_csi.node.publisher.WAIT_FOR_DAEMON_SECONDS", 0.2)
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        want, late = node.want("pod-a", "v1"), node.want("pod-b", "v1")
        await publisher.publish(want)
        node.daemon.kill()
        await eventually(lambda: not publisher.sessions.daemon.healthy)
        with pytest.raises(DaemonGone, match="retry"):
            await publisher.publish(late)
        await publisher.unpublish("v1", want.target)
        assert node.mounted() == []
        assert len(node.daemon.state_files()) == 1
        node.daemon.start()
        await publisher.sessions.wait_up(10)
        assert node.daemon.state_files() == []
        await publisher.publish(late)
        await publisher.unpublish("v1", late.target)


async def test_a_predecessor_that_is_not_done_is_told_once(
    node: Node, successor: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the plugin looks again before it drains anew, its message says the same."""
    await node.left_behind()
    await in_thread(successor.start)
    request, looks = Connection.request, 0

    async def is_busy(self: Connection, op: str, *passed: Any, **fields: Any) -> Any:
        nonlocal looks
        looks += op == "hello"
        if op == "drain":
            raise DaemonError(op, "busy", "a request still runs")
        return await request(self, op, *passed, **fields)

    monkeypatch.setattr(Connection, "request", is_busy)
    async with node.plugin(successor) as new:
        await eventually(lambda: "is not done" in new.sessions.daemon.message)
        first, before = new.sessions.daemon.message, looks
        await eventually(lambda: looks > before + 4)
        assert new.sessions.daemon.message == first


async def test_the_mount_table_is_read_once_for_all_sessions(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a node with many pods it is long, and everything waits while it is read."""
    async with node.plugin() as publisher:
        for number in range(5):
            publisher.store.put(node.want("pod-a", f"v{number}"))
        monkeypatch.setattr(mounts, "_KERNEL_TELLS_DEVICE", False)
        read, reads = mounts._mountinfo, []
        monkeypatch.setattr(mounts, "_mountinfo", lambda: reads.append(1) or read())
        assert len(publisher.wanted_sessions()) == 5
        assert len(reads) == 1
        for record in publisher.store.all():
            publisher.store.remove(record)


async def test_memory_that_cannot_be_removed_does_not_end_the_plugin(node: Node) -> None:
    """It is looked at again at the next start."""
    left = node.folder / "shm/pod-gone/left"
    left.mkdir(parents=True)
    async with node.plugin() as publisher:
        assert publisher.shm.pods() == ["pod-gone"]
    left.rmdir()
