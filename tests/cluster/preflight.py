"""What this machine must offer, checked before anything is done."""

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.host import hierarchies
from tests.cluster.shell import ClusterError

FREE_GIB = 2
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
NAMESPACES = ("ipc", "mnt", "net", "pid", "uts")


@dataclass(frozen=True)
class Machine:
    """What was seen of it."""

    user: int
    python: tuple[int, int]
    file_systems: frozenset[str]
    controllers: frozenset[str]
    namespaces: frozenset[str]
    free_gib: int


def check() -> None:
    """ClusterError, in one line, when a cluster cannot run here."""
    found = problems(see())
    if found:
        raise ClusterError("; ".join(found))


def problems(machine: Machine) -> list[str]:
    """What stands in the way, each with what to do. Pure."""
    found = []
    if machine.user:
        found.append("this needs root: run it with sudo")
    if machine.python < (3, 11):
        found.append("this needs Python 3.11 or later")
    if "overlay" not in machine.file_systems:
        found.append("the kernel offers no overlay file system: `modprobe overlay`, or set CONFIG_OVERLAY_FS")
    for names, offered, what in (
        (CONTROLLERS, machine.controllers, "cgroup controller"),
        (NAMESPACES, machine.namespaces, "namespace type"),
    ):
        missing = sorted(set(names) - offered)
        if missing:
            found.append(f"the kernel offers no {what} {', '.join(missing)}: boot one that does, or mount it")
    if machine.free_gib < FREE_GIB:
        found.append(
            f"/var/lib has {machine.free_gib} GiB free and a cluster needs {FREE_GIB}: free some space"
        )
    return found


def see() -> Machine:
    """What this machine offers."""
    roots = hierarchies()
    if len(roots) == 1:
        controllers = frozenset((roots[0] / "cgroup.controllers").read_text().split())
    else:
        controllers = frozenset(name for root in roots for name in root.name.split(","))
    return Machine(
        user=os.geteuid(),
        python=sys.version_info[:2],
        file_systems=frozenset(
            line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()
        ),
        controllers=controllers,
        namespaces=frozenset(path.name for path in Path("/proc/self/ns").iterdir()),
        free_gib=shutil.disk_usage("/var/lib").free >> 30,
    )
