"""From the usrbiod of commit 38167ef to this one with pods at work: no error, no wrong byte, no lost lock.

`make test-upgrade` builds both.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from csikit.daemon import REPOSITORY, Daemon
from csikit.waiting import eventually

from kube3fs_csi.node import mounts
from kube3fs_csi.node.sessions import Health, Sessions, close_all
from kube3fs_csi.node.state import Store
from kube3fs_csi.node.usrbiod import Json

TARGET = REPOSITORY / "client-native/target"
OLD = TARGET / "upgrade/target/debug/usrbiod"
OLD_TREE = TARGET / "upgrade/38167ef"
NEW = TARGET / "debug/usrbiod"
RINGS = TARGET / "debug/examples/verify"
ROUNDS = 3
ROLES = ("files", "names", "holder", "rival")


class Pods:
    """Programs in one mount, each a process."""

    def __init__(self, folder: Path, mount: Path) -> None:
        self._folder, self._mount = folder, mount
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: list[str]) -> None:
        """Runs a program."""
        log = (self._folder / f"{name}.log").open("wb")
        with log:
            self._running[name] = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log)

    def start_role(self, role: str) -> None:
        """Runs what `client.py` has of that name."""
        client = Path(__file__).with_name("client.py")
        self.start(role, [sys.executable, str(client), role, str(self._mount), str(self._progress(role))])

    def _progress(self, role: str) -> Path:
        return self._folder / f"{role}.progress"

    def count(self, role: str) -> int:
        """How much it has done. Fails the test when it has ended."""
        self.check()
        with suppress(FileNotFoundError, ValueError):
            return int(self._progress(role).read_text())
        return 0

    def check(self) -> None:
        """Fails the test if a program has ended."""
        for name, process in self._running.items():
            log = self._folder / f"{name}.log"
            assert process.poll() is None, f"{name} ended with {process.returncode}: {log.read_text()}"

    async def has_begun(self, role: str) -> None:
        """Returns when it has done something."""
        await eventually(lambda: self.count(role) > 0)

    async def go_on(self) -> None:
        """Returns when each has done more."""
        before = {role: self.count(role) for role in ROLES}
        await eventually(lambda: all(self.count(role) > count + 2 for role, count in before.items()), 60)

    async def finish(self) -> None:
        """Has them end, and fails the test if one does so with an error."""
        self.check()
        # The rival before the holder, whose locks it must not get; then the waiter gets its lock.
        for name in ("files", "names", "rival", "holder", "waiter"):
            process = self._running.pop(name)
            assert process.stdin is not None
            process.stdin.close()
            status = await asyncio.wait_for(asyncio.to_thread(process.wait), 60)
            assert status == 0, (self._folder / f"{name}.log").read_text()
        self.check()

    def kill(self) -> None:
        """Leaves nothing that runs."""
        for process in self._running.values():
            process.kill()
        for process in self._running.values():
            process.communicate()


@asynccontextmanager
async def peer(daemon: Daemon, wanted: dict[str, Json]) -> AsyncIterator[Sessions]:
    """The part of a node plugin that keeps sessions alive. Leaving it is like SIGKILL."""
    sessions = Sessions(daemon.socket, lambda: wanted)
    running = asyncio.create_task(sessions.run())
    try:
        await sessions.wait_up(20)
        yield sessions
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        for name in list(sessions._fds):
            sessions._drop(name)


@contextmanager
def unmounted(mount: Path) -> Iterator[None]:
    """Leaves no mount."""
    mount.mkdir()
    try:
        yield
    finally:
        mounts.unmount(mount)


async def publish(sessions: Sessions, folder: Path, mount: Path, config: Json) -> None:
    """Mounts `folder` at `mount`, with this machine's shared memory."""
    how = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    fds = {"fuse": await asyncio.to_thread(mounts.mount_fuse, mount)}
    fds |= {"backing": os.open(folder, how), "shm": os.open("/dev/shm", how)}
    try:
        await sessions.attach(config, fds)
    except BaseException:
        close_all(fds.values())
        raise


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize("passthrough", [True, False], ids=["passthrough", "copying"])
@pytest.mark.parametrize("way", ["hand-over", "kill"])
async def test_an_upgrade_is_not_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, passthrough: bool, round_: int
) -> None:
    """Rings, open files, names and locks go on, and again after `kill -9` of the new one."""
    data, mount, runtime = tmp_path / "data", tmp_path / "mount", tmp_path / "run"
    data.mkdir()
    runtime.mkdir()
    config: Json = {"name": "pod", "cluster": "c", "mount_point": str(mount), "passthrough": passthrough}
    wanted: dict[str, Json] = {}
    old, new = Daemon(runtime, "old"), Daemon(runtime, "new")
    pods = Pods(tmp_path, mount)
    monkeypatch.setenv("USRBIOD", str(OLD))
    await asyncio.to_thread(old.start)
    try:
        with unmounted(mount):
            async with peer(old, wanted) as sessions:
                await publish(sessions, data, mount, config)
                wanted["pod"] = config
                for role in ROLES:
                    pods.start_role(role)
                    await pods.has_begun(role)
                pods.start_role("waiter")
                pods.start("rings", [str(RINGS), str(mount / "rings"), "600"])
                await eventually(lambda: "running" in (tmp_path / "rings.log").read_text())
                await pods.go_on()
                monkeypatch.setenv("USRBIOD", str(NEW))
                if way == "kill":
                    await asyncio.to_thread(old.kill)
                    new = old
                await asyncio.to_thread(new.start)
                if way == "kill":
                    await pods.go_on()
                    assert sessions.health("pod") is Health.SERVED
                    await killed(new, pods)
                    await finish(pods)
                    await sessions.detach("pod")
                    return
                async with peer(new, wanted) as successor:
                    await pods.go_on()
                    assert successor.health("pod") is Health.SERVED
                    await asyncio.to_thread(old.kill)
                    await killed(new, pods)
                    await finish(pods)
                    await successor.detach("pod")
    finally:
        pods.kill()
        old.kill()
        new.kill()


async def killed(daemon: Daemon, pods: Pods) -> None:
    """A successor of the same version goes on with what was migrated."""
    await asyncio.to_thread(daemon.kill)
    await asyncio.to_thread(daemon.start)
    await pods.go_on()


async def finish(pods: Pods) -> None:
    """All end well."""
    await pods.finish()
    pods.kill()


_WRITE_RECORDS = """
import sys
from pathlib import Path
from kube3fs_csi.node.state import Pod, Published, Store
store = Store(Path(sys.argv[1]))
for kind in "filesystem", "shm", "client", "scratch":
    target = Path("/kubelet/pods/p/volumes/kubernetes.io~csi") / kind / "mount"
    asked = {"volume_id": kind, "kind": kind, "cluster": "ns/fast", "size": 1 << 20}
    record = Published(target=target, pod=Pod(key="p"), **asked)
    store.put(record)
    print(record.session)
"""


def test_what_the_older_node_plugin_noted_of_published_volumes_is_read(tmp_path: Path) -> None:
    """Each record is there, with the same session: the volumes of running pods stay what they are."""
    path = os.pathsep.join(str(OLD_TREE / package / "src") for package in ("csi", "crds"))
    argv = [sys.executable, "-c", _WRITE_RECORDS, str(tmp_path)]
    written = subprocess.run(
        argv, env=os.environ | {"PYTHONPATH": path}, check=True, capture_output=True, text=True
    )
    records = Store(tmp_path).all()
    assert sorted(record.session for record in records) == sorted(written.stdout.split())
    assert len(records) == 4
    assert {record.kind for record in records if record.is_mount_of_ours} == {"filesystem", "scratch"}
    assert all((record.cluster, record.size) == ("ns/fast", 1 << 20) for record in records)
