"""Stands for pods: `client.py ROLE MOUNT PROGRESS` works in MOUNT until its standard input ends.

It counts in PROGRESS. Any error, or a byte that is not what was written, ends it with a traceback. It is a
process of its own: a peer of usrbiod must not hold files of its mounts.
"""

import contextlib
import fcntl
import os
import select
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 4096
BLOCKS = 64


def block(number: int, version: int) -> bytes:
    """What block `number` holds in its `version`."""
    return f"{number:10} {version:10}\n".encode().ljust(BLOCK, b".")


def files(mount: Path) -> Iterator[None]:
    """Open files, one without a name and one replaced by another: each byte is what was written last."""
    opened = {}
    for name in ("named", "unlinked", "replaced"):
        fd = os.open(mount / name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        opened[fd] = [0] * BLOCKS
    (mount / "unlinked").unlink()
    (mount / "newer").write_bytes(b"newer")
    (mount / "newer").rename(mount / "replaced")
    step = 0
    while True:
        for fd, versions in opened.items():
            number = step * 7 % BLOCKS
            if versions[number]:
                assert os.pread(fd, BLOCK, number * BLOCK) == block(number, versions[number])
            versions[number] += 1
            assert os.pwrite(fd, block(number, versions[number]), number * BLOCK) == BLOCK
        assert (mount / "replaced").read_bytes() == b"newer"
        step += 1
        yield


def names(mount: Path) -> Iterator[None]:
    """What shows when it is done twice, or not at all."""
    step = 0
    while True:
        folder, file, link = mount / f"folder-{step}", mount / f"file-{step}", mount / f"link-{step}"
        folder.mkdir()
        os.close(os.open(folder / "a", os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        (folder / "a").rename(file)
        file.write_text("text")
        link.hardlink_to(file)
        assert link.stat().st_nlink == 2
        assert list(folder.iterdir()) == []
        folder.rmdir()
        file.unlink()
        assert link.read_text() == "text"
        link.unlink()
        file.symlink_to("target")
        assert file.readlink() == Path("target")
        file.unlink()
        step += 1
        yield


def holder(mount: Path) -> Iterator[None]:
    """Holds a BSD lock and half of a file by a POSIX one."""
    whole = os.open(mount / "flock", os.O_RDWR | os.O_CREAT)
    half = os.open(mount / "posix", os.O_RDWR | os.O_CREAT)
    fcntl.flock(whole, fcntl.LOCK_EX)
    fcntl.lockf(half, fcntl.LOCK_EX, 10)
    while True:
        fcntl.lockf(half, fcntl.LOCK_SH, 5, 100)
        fcntl.lockf(half, fcntl.LOCK_UN, 5, 100)
        yield


def refused(lock: Callable[..., None], *how: int) -> None:
    """Somebody else holds it."""
    try:
        lock(*how)
    except BlockingIOError:
        return
    raise AssertionError("a lock was lost")


def rival(mount: Path) -> Iterator[None]:
    """Gets no lock that somebody holds, and those that nobody does."""
    while True:
        whole = os.open(mount / "flock", os.O_RDWR)
        half = os.open(mount / "posix", os.O_RDWR)
        now = fcntl.LOCK_EX | fcntl.LOCK_NB
        refused(fcntl.flock, whole, now)
        refused(fcntl.lockf, half, now, 3, 7)
        fcntl.lockf(half, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 10)
        os.close(whole)
        os.close(half)
        yield


def waiter(mount: Path) -> Iterator[None]:
    """Waits for the lock of the holder all the while."""
    half = os.open(mount / "posix", os.O_RDWR)
    yield
    fcntl.lockf(half, fcntl.LOCK_EX, 10)
    yield


ROLES: dict[str, Callable[[Path], Iterator[None]]] = {
    role.__name__: role for role in (files, names, holder, rival, waiter)
}


def main() -> None:
    """See the module."""
    role, mount, progress = sys.argv[1:]
    count = 0
    with contextlib.closing(os.fdopen(os.open(progress, os.O_WRONLY | os.O_CREAT), "wb", 0)) as out:
        for _ in ROLES[role](Path(mount)):
            count += 1
            os.pwrite(out.fileno(), f"{count:12}".encode(), 0)
            if select.select([0], [], [], 0)[0] and role != "waiter":
                return


if __name__ == "__main__":
    main()
