"""A daemon on a directory, for all tests of a run."""

import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import usrbio

BLOCK = 4096
BLOCKS = 256

BIN = Path(sysconfig.get_path("scripts"))


@contextmanager
def serving(directory: Path, mount_point: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`usrbio serve`, as the wheel installs it, ready to be used."""
    # It ends with this process, however that ends.
    command = ["setpriv", "--pdeathsig", "TERM", BIN / "usrbio", "serve", directory, mount_point, *options]
    with (directory.parent / "serve.log").open("wb") as log:
        daemon = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert daemon.stdout
        said = daemon.stdout.readline()
        assert said.startswith("serving "), (directory.parent / "serve.log").read_text()
        yield daemon
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(timeout=60)
        if daemon.stdout:
            daemon.stdout.close()
    assert not os.path.ismount(mount_point)


@contextmanager
def _stopped(daemon: subprocess.Popen[str]) -> Iterator[None]:
    children = daemon_processes(daemon)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    try:
        deadline = time.monotonic() + 30
        while any(
            _state(task) != "T" for child in children for task in Path(f"/proc/{child}/task").iterdir()
        ):
            assert time.monotonic() < deadline, "the daemon does not stop"
            time.sleep(0.001)
        yield
    finally:
        for child in children:
            os.kill(child, signal.SIGCONT)


def _state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def daemon_processes(daemon: subprocess.Popen[str]) -> list[int]:
    """Process ids of the daemon itself, which `usrbio serve` only watches."""
    return [int(pid) for pid in Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()]


@pytest.fixture
def stopped() -> Callable[[subprocess.Popen[str]], AbstractContextManager[None]]:
    """Keeps a daemon from answering as long as a `with` lasts."""
    return _stopped


@pytest.fixture
def slow_mount(tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A mount whose directory `slow` is on storage of its own, and that storage: `stopped` makes it hang."""
    (tmp_path / "data" / "slow").mkdir(parents=True)
    with (
        serving(tmp_path / "storage", tmp_path / "data" / "slow", "--no-passthrough") as storage,
        serving(tmp_path / "data", tmp_path / "mnt"),
    ):
        yield tmp_path / "mnt", storage


@pytest.fixture
def uncache(tmp_path: Path) -> Callable[[Path], None]:
    """Has a file of `slow_mount` read from its storage again."""

    def uncache(path: Path) -> None:
        with (tmp_path / "data" / path.relative_to(tmp_path / "mnt")).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    return uncache


@pytest.fixture
def interrupted() -> Callable[[], AbstractContextManager[None]]:
    """Ctrl-C in the middle of what the `with` does."""

    @contextmanager
    def interrupted() -> Iterator[None]:
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    return interrupted


@pytest.fixture
def kill() -> Callable[[subprocess.Popen[str]], None]:
    """Kills a daemon, which its supervisor then starts again."""

    def kill(daemon: subprocess.Popen[str]) -> None:
        for pid in daemon_processes(daemon):
            os.kill(pid, signal.SIGKILL)

    return kill


@pytest.fixture(scope="session")
def mount_point(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A USRBIO mount, where files are removed with the test run."""
    top = tmp_path_factory.mktemp("served")
    with serving(top / "data", top / "mnt"):
        yield top / "mnt"


@pytest.fixture
def serve() -> Callable[..., AbstractContextManager[subprocess.Popen[str]]]:
    """Serves a directory as long as a `with` lasts."""
    return serving


@pytest.fixture
def mount(mount_point: Path) -> Iterator[usrbio.Mount]:
    with usrbio.Mount(mount_point) as mount:
        yield mount


@pytest.fixture
def ring(mount: usrbio.Mount) -> Iterator[usrbio.Ring]:
    with usrbio.Ring(mount, 64) as ring:
        yield ring


@pytest.fixture
def writer(mount: usrbio.Mount) -> Iterator[usrbio.Ring]:
    with usrbio.Ring(mount, 64, read=False) as ring:
        yield ring


@pytest.fixture
def iov(mount: usrbio.Mount) -> Iterator[usrbio.Iov]:
    with usrbio.Iov(mount, 64 * BLOCK) as iov:
        yield iov


@pytest.fixture(scope="session")
def content() -> bytes:
    return os.urandom(BLOCKS * BLOCK)


@pytest.fixture
def path(mount_point: Path, tmp_path: Path, content: bytes) -> Path:
    """A file of `content`, of this test's own."""
    path = mount_point / f"{tmp_path.name}.bin"
    path.write_bytes(content)
    return path


@pytest.fixture
def file(path: Path) -> Iterator[usrbio.File]:
    with usrbio.File(path) as file:
        yield file


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A second mount."""
    top = tmp_path_factory.mktemp("elsewhere")
    with serving(top / "data", top / "mnt"):
        yield top / "mnt"
