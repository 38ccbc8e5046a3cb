"""The command as a user runs it: exit codes, one-line errors, and nothing left behind. Needs root."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cluster import host
from tests.cluster.paths import NODE_PLACES_IN_MEMORY, NODE_PLACES_ON_DISK, REPOSITORY, STATE

CLUSTER = [sys.executable, "-m", "tests.cluster"]


def cluster(*argv: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*CLUSTER, *argv],
        cwd=REPOSITORY,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=280,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def taken(name: str) -> list[str]:
    """What of the machine the cluster `name` still holds."""
    groups = [str(path) for root in host.hierarchies() for path in root.glob(f"kube3fs-{name}")]
    mounts = [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"clusters/{name}" in line
    ]
    return [*groups, *mounts, *(str(path) for path in [host.folder(name)] if path.exists())]


@pytest.fixture
def machine() -> Iterator[None]:
    """Afterwards the machine is as before, unless another cluster runs on it."""

    def seen() -> dict[str, object]:
        links = [
            line.split(": ")[1]
            for line in subprocess.check_output(["ip", "-o", "link"], text=True).splitlines()
        ]
        sysctls = {
            name: Path("/proc/sys", name).read_text()
            for name in host.SYSCTLS
            if Path("/proc/sys", name).exists()
        }
        places = [place for place in (*NODE_PLACES_ON_DISK, *NODE_PLACES_IN_MEMORY) if Path(place).exists()]
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        ours = [place for place in places if place in mounts]
        return {
            "links": links,
            "sysctls": sysctls,
            "places": places,
            "mounted places": ours,
            "state": STATE.exists(),
        }

    alone = not host.names()
    before = seen()
    yield
    if alone and not host.names():
        assert seen() == before


@pytest.mark.usefixtures("machine")
def test_run_passes_output_and_exit_code_on_and_leaves_nothing() -> None:
    """`run` gives the command a working kubectl, returns its exit code, and takes everything down."""
    script = "echo $PPID; kubectl get nodes -o name; exit 7"
    process = subprocess.Popen(
        [*CLUSTER, "run", "--nodes=2", "--", "sh", "-c", script],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate(timeout=280)
    assert process.returncode == 7
    assert output.splitlines()[1:] == ["node/node-1", "node/node-2"]
    assert taken(f"run-{process.pid}") == []


@pytest.mark.usefixtures("machine")
def test_next_run_cleans_up_after_a_killed_one() -> None:
    """SIGKILL of the runner ends the cluster; what it leaves on the machine goes with the next run."""
    with subprocess.Popen(
        [*CLUSTER, "run", "--", "sh", "-c", "echo up; sleep 1000"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.kill()
    name = f"run-{process.pid}"
    wait_until(lambda: not host.processes(name))
    assert taken(name)
    done = cluster("run", "--", "true")
    assert done.returncode == 0
    assert f"cleaning up after the cluster '{name}'" in done.stderr
    assert taken(name) == []


@pytest.mark.usefixtures("machine")
def test_terminated_runner_cleans_up_itself() -> None:
    """SIGTERM ends the command and the cluster in the ordinary way."""
    with subprocess.Popen(
        [*CLUSTER, "run", "--", "sh", "-c", "echo up; exec sleep 1000"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert taken(f"run-{process.pid}") == []


@pytest.mark.usefixtures("machine")
def test_timeout_ends_the_command_with_124() -> None:
    """A command that takes longer than --timeout is killed, and the exit code says so."""
    done = cluster("run", "--timeout=1", "--", "sleep", "1000")
    assert done.returncode == 124
    assert "took more than 1 s" in done.stderr


@pytest.mark.usefixtures("machine")
def test_cluster_that_stays_is_used_from_outside_and_ended() -> None:
    """`up` leaves a cluster whose kubeconfig works outside; shell, logs and down find it by its name."""
    name = f"test-{os.getpid()}"
    try:
        up = cluster("up", "--name", name)
        assert up.returncode == 0, up.stderr
        nodes = subprocess.check_output(
            ["sh", "-c", f"{up.stdout.strip()}; kubectl get nodes -o name"], text=True, timeout=30
        )
        assert nodes == "node/node-1\n"
        again = cluster("up", "--name", name)
        assert again.returncode == 125
        assert f"a cluster '{name}' is up" in again.stderr
        assert cluster("shell", "--name", name, "--", "sh", "-c", "exit 5").returncode == 5
        assert "kubelet" in cluster("logs", "--name", name).stdout.split()
        assert "Started kubelet" in cluster("logs", "--name", name, "kubelet").stdout
        absent = cluster("logs", "--name", name, "absent")
        assert absent.returncode == 125
        assert "there are cluster, containerd" in absent.stderr
    finally:
        down = cluster("down", "--name", name)
    assert down.returncode == 0
    assert taken(name) == []
    assert cluster("down", "--name", name).returncode == 125


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a command that failed says why."""
    errors = [line for line in done.stderr.splitlines() if "error: " in line]
    assert done.returncode == 125, done.stderr
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return errors[0]


def test_not_root_is_said() -> None:
    """Who is not root is told to be."""
    argv = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "/usr/bin/python3",
        "-m",
        "tests.cluster",
        "run",
        "--",
        "true",
    ]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    assert "needs root" in one_line(done)


def test_port_in_use_is_said() -> None:
    """A port that somebody listens on is named, before anything is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = cluster("up", "--name=test-port", f"--port={port}")
    assert f"127.0.0.1:{port}: address already in use; choose another --port" in one_line(done)
    assert taken("test-port") == []


def test_missing_image_is_said() -> None:
    """An image archive that is not there is named."""
    done = cluster("run", "--image=/absent.tar", "--", "true")
    assert done.returncode == 2
    assert "there is no file '/absent.tar'" in done.stderr


def test_broken_image_is_said(tmp_path: Path) -> None:
    """A file that is no image is named."""
    broken = tmp_path / "broken.tar"
    broken.write_text("not an archive")
    assert f"is {broken} an image archive" in one_line(cluster("run", f"--image={broken}", "--", "true"))


@pytest.mark.usefixtures("machine")
def test_unknown_feature_gate_is_said() -> None:
    """What a component dies of while starting is the error, and nothing is left."""
    done = cluster("up", "--name=test-gate", "--feature-gates=NoSuchGate=true")
    assert "unrecognized feature gate: NoSuchGate" in one_line(done)
    assert taken("test-gate") == []


def test_module_proxy_that_does_not_answer_is_said(tmp_path: Path) -> None:
    """Compiling without the Go module proxy says which address does not answer."""
    nowhere = {
        "GOPROXY": "http://127.0.0.1:1",
        "GOMODCACHE": str(tmp_path / "modules"),
        "XDG_CACHE_HOME": str(tmp_path),
    }
    line = one_line(cluster("build", env=nowhere))
    assert "127.0.0.1:1" in line
    assert "connection refused" in line
