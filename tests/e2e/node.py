"""What kube3fs has on the node that the tests run on: mounts and records of pods, its processes."""

from dataclasses import dataclass
from pathlib import Path

from tests.e2e.kube3fs import NODE, PLUGIN_ARGV

KUBELET = Path("/var/lib/kubelet")
STATE = KUBELET / "plugins/csi.kube3fs.io"
RUN = Path("/run/kube3fs")


def mounts(uid: str) -> list[str]:
    """Mounts of ours on the node that belong to a pod."""
    return [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if "kube3fs" in line and uid in line
    ]


def nothing_left(uid: str) -> bool:
    assert mounts(uid) == []
    records = [path.read_text() for path in (STATE / "published").iterdir()]
    assert not any(uid in record for record in records)
    assert not (STATE / "shm" / uid).exists()
    return True


@dataclass(frozen=True)
class Process:
    """A process of the node, and what it uses now."""

    pid: int
    fds: int
    memory: int
    """Bytes that are resident."""


def process(*argv: str, group: str = "") -> Process:
    """The process whose command line has all of `argv`, in a cgroup with `group` in its name."""
    pids = Path("/proc").glob("[0-9]*")
    (found,) = [found for pid in pids if (found := _look(pid, argv, group))]
    return found


def plugin() -> dict[str, Process]:
    """The processes of the plugin, by container."""
    return {name: process(*argv, group=f"/{NODE}/") for name, argv in PLUGIN_ARGV.items()}


def kubelet() -> Process:
    """The node's kubelet."""
    return process("kubelet", f"--hostname-override={NODE}")


def _look(pid: Path, argv: tuple[str, ...], group: str) -> Process | None:
    """The process of a folder of /proc, if it is one of those meant and not about to end."""
    try:
        if not set(argv) <= set((pid / "cmdline").read_text().split("\0")):
            return None
        if group not in (pid / "cgroup").read_text():
            return None
        status = dict(line.split(":", 1) for line in (pid / "status").read_text().splitlines())
        fds = len(list((pid / "fd").iterdir()))
        # One that was killed has no memory any more, and ends later.
        return Process(int(pid.name), fds, int(status["VmRSS"].split()[0]) << 10)
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return None
