"""`usrbio check`: what works here, what does not, and what to do."""

import argparse
import contextlib
import errno
import itertools
import json
import os
import platform
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import usrbio
from usrbio.cli._common import add_command, human, mount_points

if TYPE_CHECKING:
    from usrbio.cli._common import Commands

_EXAMPLES = """  usrbio check /mnt/data
  usrbio check /mnt/data --json
"""

_PASSTHROUGH_SINCE = (6, 9)
"""Linux that lets the kernel read and write a mount's files without the daemon."""

_LITTLE_SHM = 256 << 20
"""Shared memory that real batches soon need."""

_BLOCK = 4096

_READ = "a read through the ring is answered"

_LOOKED_AT = 10_000
"""Names among which a file is looked for."""


@dataclass
class Finding:
    """One line of the report."""

    state: str
    """ok, note (works, could be better) or fail."""
    what: str
    advice: str = ""


def add_to(commands: "Commands") -> None:
    """Adds the command."""
    parser = add_command(commands, "check", "say what works here, what does not, and what to do", _EXAMPLES)
    parser.add_argument("path", metavar="PATH", help="the mount point, or a file or directory below it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks at everything that may be in the way of rings; 1 if something is."""
    findings = list(_findings(args.path))
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{finding.state:4}  {finding.what}")
            if finding.advice:
                print(f"      -> {finding.advice}")
    return int(any(finding.state == "fail" for finding in findings))


def _findings(path: str) -> Iterator[Finding]:
    yield _kernel()
    yield _shared_memory()
    yield from _memory_limit()
    try:
        mount = usrbio.Mount(path)
    except OSError as error:
        yield Finding("fail", error.strerror or str(error), _no_mount_advice(error))
        return
    yield Finding("ok", f"{mount.path} is a USRBIO mount")
    yield from _ring(mount, path)
    yield _libraries()


def _kernel() -> Finding:
    release = platform.release()
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in [*release.split("."), "0"][:2])
    if (major, minor) >= _PASSTHROUGH_SINCE:
        return Finding("ok", f"Linux {release}")
    return Finding(
        "note",
        f"Linux {release}: a local daemon copies what ordinary programs read and write",
        "rings are as fast as ever; for passthrough use Linux 6.9 or later",
    )


def _shared_memory() -> Finding:
    try:
        space = os.statvfs("/dev/shm")
    except OSError as error:
        return Finding("fail", f"/dev/shm: {error.strerror}", "mount a tmpfs there")
    free, total = space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize
    what = f"{human(free)} of {human(total)} of shared memory are free"
    if total == 0 or free >= _LITTLE_SHM:
        return Finding("ok", what if total else "shared memory has no limit")
    return Finding(
        "note",
        what,
        "an Iov takes all of its size from there; make it larger: annotation kube3fs.io/shm-size on the pod, "
        "--shm-size for a container, or mount -o remount,size=... /dev/shm",
    )


def _memory_limit() -> Iterator[Finding]:
    """What lies in shared memory counts as memory of the container."""
    limit = _container_limit()
    with contextlib.suppress(OSError):
        space = os.statvfs("/dev/shm")
        total = space.f_blocks * space.f_frsize
        if limit is not None and total > limit:
            yield Finding(
                "note",
                f"{human(total)} of shared memory are more than the container's limit of {human(limit)}",
                "an Iov beyond the limit ends the program (OOMKilled): raise resources.limits.memory, or "
                "lower the annotation kube3fs.io/shm-size",
            )


def _container_limit() -> int | None:
    """Bytes of memory that this container may have."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            return int(Path(path).read_text())
    return None


def _no_mount_advice(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "give a path that exists"
    if error.errno == errno.ENOTCONN:
        return "the mount's daemon is gone: unmount it, and serve it again"
    points = mount_points()
    if points:
        return "give a path below " + " or ".join(points)
    return "there is no USRBIO mount here: sudo usrbio serve DIR MOUNTPOINT makes one"


def _ring(mount: usrbio.Mount, path: str) -> Iterator[Finding]:
    """A ring round trip, as far as it comes."""
    with contextlib.ExitStack() as stack:
        for what, make in _steps(mount, path, stack):
            try:
                make()
            except (OSError, ValueError) as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                yield Finding("fail", f"{what}: {text}", _ring_advice(error, what == _READ))
                return
            yield Finding("ok", what)


def _steps(
    mount: usrbio.Mount, path: str, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Callable[[], object]]]:
    iovs: list[usrbio.Iov] = []
    rings: list[usrbio.Ring] = []

    def read() -> None:
        file = stack.enter_context(_some_file(path))
        rings[0].submit(file, 0, _BLOCK, iovs[0]).wait(timeout=10)

    yield "an Iov can be registered", lambda: iovs.append(stack.enter_context(usrbio.Iov(mount, _BLOCK)))
    yield "a ring can be registered", lambda: rings.append(stack.enter_context(usrbio.Ring(mount, 1)))
    yield _READ, read


@contextlib.contextmanager
def _some_file(path: str) -> Iterator[usrbio.File]:
    """The file at `path`; or a new one in that directory, or where none can be made, any that can be read."""
    if not Path(path).is_dir():
        with usrbio.File(path) as file:
            yield file
        return
    if not os.access(path, os.W_OK):
        with _first_file(path) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile(dir=path, prefix=".usrbio-check-") as temporary:
        temporary.write(b"usrbio check")
        temporary.flush()
        with usrbio.File(temporary.name) as file:
            yield file


def _first_file(path: str) -> usrbio.File:
    """A file below `path` that has something to read, of the first names there."""
    names = ((folder, name) for folder, _, names in os.walk(path) for name in names)
    for folder, name in itertools.islice(names, _LOOKED_AT):
        with contextlib.suppress(OSError):
            found = Path(folder, name)
            if stat.S_ISREG(found.lstat().st_mode) and found.stat().st_size:
                return usrbio.File(found)
    raise PermissionError(errno.EACCES, "there is no file to read, and none may be made")


def _ring_advice(error: Exception, reading: bool) -> str:
    if isinstance(error, TimeoutError):
        return "the daemon does not answer: look at its log"
    code = error.errno if isinstance(error, OSError) else None
    if reading and code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give a file below the mount that you may read"
    if code == errno.EROFS:
        return (
            "the mount is read-only, and its daemon too old for rings there: update it, or mount it writable"
        )
    if code == errno.EACCES:
        return (
            "if the pod mounts a volume of its own at /dev/shm, remove it: with the label kube3fs.io/inject "
            "it gets one that the daemon knows; a container shares the daemon's by a bind mount"
        )
    if code == errno.EPERM:
        return "a pod with hostUsers: false needs a mount that is not read-only"
    if code == errno.ENOENT:
        return "the daemon cannot see this process's /dev/shm: share it with the daemon (bind mount)"
    return ""


def _libraries() -> Finding:
    there = [name for name in ("numpy", "torch", "fsspec") if find_spec(name)]
    return Finding(
        "ok", f"Python {platform.python_version()}, with {', '.join(there) or 'none of numpy, torch, fsspec'}"
    )
