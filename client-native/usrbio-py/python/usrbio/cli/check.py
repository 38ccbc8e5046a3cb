"""`usrbio check`: what works here, what does not, and what to do."""

import argparse
import contextlib
import errno
import json
import os
import platform
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
                yield Finding("fail", f"{what}: {text}", _ring_advice(error))
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
    yield "a read through the ring is answered", read


@contextlib.contextmanager
def _some_file(path: str) -> Iterator[usrbio.File]:
    """The file at `path`, or one without a name in that directory."""
    if not Path(path).is_dir():
        with usrbio.File(path) as file:
            yield file
        return
    with tempfile.NamedTemporaryFile(dir=path, prefix=".usrbio-check-") as temporary:
        temporary.write(b"usrbio check")
        temporary.flush()
        with usrbio.File(temporary.name) as file:
            yield file


def _ring_advice(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the daemon does not answer: look at its log"
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "give a file below the mount that you may read"
    if code == errno.ENOENT:
        return "the daemon cannot see this process's /dev/shm: share it with the daemon (bind mount)"
    return ""


def _libraries() -> Finding:
    there = [name for name in ("numpy", "torch", "fsspec") if find_spec(name)]
    return Finding(
        "ok", f"Python {platform.python_version()}, with {', '.join(there) or 'none of numpy, torch, fsspec'}"
    )
