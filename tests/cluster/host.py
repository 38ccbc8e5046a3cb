"""What a cluster takes from the machine, and giving it back: folders, cgroups, sysctls, processes.

Everything else lies in namespaces, which end with their last process. A cluster whose runner was killed is
found by its folder and swept by the next command. All of it happens under one lock: clusters may run side
by side.
"""

import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.paths import NODE_PLACES_IN_MEMORY, NODE_PLACES_ON_DISK, STATE
from tests.cluster.shell import ClusterError, say
from tests.cluster.spec import Spec, nodes

CGROUPS = Path("/sys/fs/cgroup")
_CLUSTERS = STATE / "clusters"
_MACHINE = STATE / "machine.json"
_LOCK = Path("/run/lock/kube3fs-cluster")

SYSCTLS = (
    # The kubelet sets these for the whole machine.
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


@dataclass(frozen=True)
class Process:
    """A process that cannot be taken for a later one with the same pid."""

    pid: int
    started: int
    """Clock ticks after boot: field 22 of proc(5) /proc/pid/stat."""

    @classmethod
    def of(cls, pid: int) -> "Process":
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return cls(pid, int(fields[19]))

    def alive(self) -> bool:
        try:
            return Process.of(self.pid) == self
        except (OSError, IndexError):
            return False


def folder(name: str) -> Path:
    """The folder of the cluster `name`."""
    return _CLUSTERS / name


def names() -> list[str]:
    """Of every cluster that lives, or left its folder."""
    return sorted(p.name for p in _CLUSTERS.iterdir()) if _CLUSTERS.is_dir() else []


def create(spec: Spec) -> None:
    """Make the cluster's folder and cgroups; sweep what dead clusters left. The caller owns the cluster."""
    with _locked():
        _sweep()
        if spec.folder.exists():
            raise ClusterError(f"a cluster '{spec.name}' is up: use it, or run `down` first")
        _prepare_machine()
        spec.folder.mkdir(parents=True)
        set_process(spec.folder, "owner", os.getpid())
        (spec.folder / "logs").mkdir()
        (spec.folder / "spec.json").write_text(json.dumps(spec.to_json()))
        for root in hierarchies():
            for group in ("control", *(node.name for node in nodes(spec))):
                _make_cgroup(root, root / spec.cgroup / group)


def destroy(name: str) -> None:
    """End the cluster's processes and remove what it took from the machine."""
    with _locked():
        _destroy(name)
        _release_machine()


def sweep() -> None:
    """Remove what clusters left whose runner was killed."""
    with _locked():
        _sweep()
        _release_machine()


def set_process(cluster: Path, role: str, pid: int) -> None:
    """Note who the cluster's `owner` (it goes with that process) or `init` (its namespaces' holder) is."""
    process = Process.of(pid)
    (cluster / role).write_text(f"{process.pid} {process.started}")


def process(cluster: Path, role: str) -> Process | None:
    """What `set_process` noted."""
    try:
        pid, started = (cluster / role).read_text().split()
    except (OSError, ValueError):
        return None
    return Process(int(pid), int(started))


def lives(cluster: Path) -> bool:
    """Does the cluster run, and does anybody still want it? One without an owner stays until `down`."""
    owner, init = process(cluster, "owner"), process(cluster, "init")
    if owner is not None:
        return owner.alive()
    return init is not None and init.alive()


def hierarchies() -> list[Path]:
    """The roots of the cgroup hierarchies: one with version 2, one a controller with version 1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return sorted(p.parent for p in CGROUPS.glob("*/cgroup.procs"))


@contextmanager
def _locked() -> Iterator[None]:
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep() -> None:
    for name in names():
        if not lives(folder(name)):
            say(f"cleaning up after the cluster '{name}', which was killed")
            _destroy(name)


def _destroy(name: str) -> None:
    _kill(name)
    for root in hierarchies():
        for path, _, _ in os.walk(root / f"kube3fs-{name}", topdown=False):
            Path(path).rmdir()
    # Its mounts went with its namespaces; what lies in the folder is the cluster's own.
    shutil.rmtree(folder(name), ignore_errors=True)


def processes(name: str) -> set[int]:
    """Every process of the cluster `name`, by its cgroups."""
    files = (file for root in hierarchies() for file in (root / f"kube3fs-{name}").rglob("cgroup.procs"))
    return {int(pid) for file in files for pid in file.read_text().split()}


def _kill(name: str) -> None:
    """SIGKILL every process of the cluster and wait until they are gone."""
    deadline = time.monotonic() + 30
    while pids := processes(name):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"processes {', '.join(map(str, sorted(pids)))} do not end: is a mount of theirs stuck?"
            )
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _make_cgroup(root: Path, group: Path) -> None:
    group.mkdir(parents=True)
    # Version 1: a cpuset takes no process before it has CPUs and memory.
    for path in (group.parent, group):
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (path / name).exists() and root != CGROUPS and not (path / name).read_text().strip():
                (path / name).write_text((root / name).read_text())


def _prepare_machine() -> None:
    """Note what a cluster will change, before it is changed; make the folders that nodes mount on."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    places = map(Path, (*NODE_PLACES_ON_DISK, *NODE_PLACES_IN_MEMORY))
    absent = sorted({str(p) for place in places for p in (place, *place.parents) if not p.exists()})
    if _MACHINE.exists():
        noted = json.loads(_MACHINE.read_text())
        noted["made"] += absent
    else:
        present = [name for name in SYSCTLS if Path("/proc/sys", name).exists()]
        noted = {"made": absent, "sysctls": {name: Path("/proc/sys", name).read_text() for name in present}}
    partial = _MACHINE.with_suffix(".partial")
    partial.write_text(json.dumps(noted))
    partial.rename(_MACHINE)
    for place in absent:
        Path(place).mkdir()


def _release_machine() -> None:
    """After the last cluster: put back what `_prepare_machine` noted."""
    if names() or not _MACHINE.exists():
        return
    noted = json.loads(_MACHINE.read_text())
    for name, value in noted["sysctls"].items():
        path = Path("/proc/sys", name)
        if path.read_text() != value:
            path.write_text(value)
    for place in reversed(noted["made"]):
        with suppress(OSError):  # somebody else uses it by now
            Path(place).rmdir()
    _MACHINE.unlink()
    _CLUSTERS.rmdir()
    STATE.rmdir()
