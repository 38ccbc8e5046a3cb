"""What is done to everything in a tree that a pod fills and may be changing: copy, remove, count, hand over.

Each runs as a process of its own, `kube3fs-tree` (client-native/kube3fs-tree), which is given the trees as
open directories and sees nothing else of the node. The paths here are ours; no name below them is looked at.

All functions block for as long as the walk goes on, and raise when it has not come any further for
`STALLED_SECONDS`.
"""

import contextlib
import errno
import json
import os
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from stat import S_ISDIR
from typing import Any, NamedTuple

from kube3fs_csi.node.commands import CommandFailed
from kube3fs_csi.serving.errors import Exhausted, Precondition, Unavailable

PROGRAM = "kube3fs-tree"
STALLED_SECONDS = 600.0
"""One step may be long: the kernel removes a file of some TiB in one."""
_TO_END_SECONDS = 10.0
_KILLED_SECONDS = 1.0
"""Not for ever: the kernel may hold it in a disk that hangs."""
_CHUNK = 1 << 16

Told = Callable[[dict[str, Any]], None]
"""Given each line that the program writes, as kube3fs-tree/src/main.rs has it."""


class Counted(NamedTuple):
    """Bytes on disk and inodes of a tree, each inode once. Without `complete`: so much at least."""

    used: int
    inodes: int
    complete: bool


class TreeFailed(CommandFailed):
    """The walk met an error of the file system."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


def copy(source: Path, target: Path, progress: Callable[[int, int], None]) -> None:
    """Copies what is in `source` into the empty directory `target`, with all attributes."""
    most = 0

    def told(line: dict[str, Any]) -> None:
        nonlocal most
        if total := line.get("total"):
            most = total["bytes"]
            progress(min(line["bytes"], most), most)

    try:
        done = _run("copy", [source, target], [], told)
    except TreeFailed as error:
        raise _of_copying(source, error) from error
    most = max(most, done["bytes"])
    progress(most, most)


def remove(path: Path, seconds: int) -> bool:
    """Removes a tree, or what is in its place. False: not all in that time; the next call goes on."""
    try:
        if not S_ISDIR(path.lstat().st_mode):
            path.unlink()
            return True
        _run("remove", [path], [str(seconds)], _ignore)
        path.rmdir()
    except FileNotFoundError:
        return True
    except TreeFailed as error:
        if error.errno != errno.ETIME:
            raise
        return False
    return True


def count(path: Path, seconds: int) -> Counted:
    """Counts a tree, its root included, for so long."""
    done = _run("count", [path], [str(seconds)], _ignore)
    return Counted(done["bytes"], done["inodes"], done["complete"])


def give_to_group(path: Path, group: int, progress: Callable[[int], None]) -> None:
    """Lets `group` read and write a tree. `progress` is told how many names were met.

    If the root is the group's already, only what is in other groups' hands by now is handed over.
    """
    try:
        _run("group", [path], [str(group)], lambda line: progress(line["entries"]))
    except TreeFailed as error:
        if error.errno in (errno.ELOOP, errno.EAGAIN):
            raise Precondition(f"{path.name} cannot be handed to group {group}: {error}") from error
        raise


def _of_copying(source: Path, error: TreeFailed) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(f"there is no room for a copy of {source.name}: {error}")
    if error.errno == errno.EAGAIN:
        return Unavailable(f"{source.name} cannot be copied while pods write so much to it: {error}")
    if error.errno == errno.ELOOP:
        return Precondition(f"{source.name} cannot be copied, its directories lie too deep: {error}")
    return CommandFailed(f"copying {source.name} failed: {error}")


def _run(command: str, trees: Sequence[Path], more: Sequence[str], told: Told) -> dict[str, Any]:
    """What the program has `done`; TreeFailed if the walk failed."""
    fds: list[int] = []
    try:
        for tree in trees:
            fds.append(os.open(tree, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        argv = [PROGRAM, command, *map(str, fds), *more]
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, pass_fds=fds, cwd="/"
        )
    except FileNotFoundError as error:
        if error.filename != PROGRAM:
            raise
        raise CommandFailed(f"{PROGRAM} is not installed beside the node plugin") from error
    finally:
        for fd in fds:
            os.close(fd)
    assert process.stdout is not None  # noqa: S101 it is a pipe
    with process.stdout:
        try:
            last = _listen(process.stdout.fileno(), told)
            process.wait(_TO_END_SECONDS)
        except BaseException:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_KILLED_SECONDS)
            raise
    if "errno" in last:
        raise TreeFailed(last["errno"], last["error"])
    if "done" not in last:
        raise CommandFailed(f"{PROGRAM} {command} ended with status {process.returncode} before it was done")
    done: dict[str, Any] = last["done"]
    return done


def _listen(pipe: int, told: Told) -> dict[str, Any]:
    """The last line that is written, when all is; `told` gets those before."""
    last: dict[str, Any] = {}
    poll, rest = select.poll(), b""
    poll.register(pipe, select.POLLIN)
    heard = time.monotonic()
    while True:
        if not poll.poll(max(0.0, heard + STALLED_SECONDS - time.monotonic()) * 1000):
            raise Unavailable(
                f"nothing has gone on for {STALLED_SECONDS:.0f} s in a walk over a volume: its disk hangs"
            )
        heard = time.monotonic()
        chunk = os.read(pipe, _CHUNK)
        if not chunk:
            return last
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            last = json.loads(line)
            if "entries" in last:
                told(last)


def _ignore(_line: dict[str, Any]) -> None:
    """Nobody wants to know."""
