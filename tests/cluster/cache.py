"""Keeping what is expensive to make: one process makes it, everybody uses it, the oldest goes."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.shell import say

_KEEP = 8
_UNUSED_SECONDS = 2 * 3600


def made(path: Path, make: Callable[[Path], None]) -> Path:
    """`path`. Where there is none, `make` makes it, elsewhere at first: it is there whole or not at all."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # One lock for all versions of a thing: `operator-0123.tar` waits for no other image.
        with alone(path.parent / f"{path.stem.partition('-')[0]}.lock"):
            if not path.exists():
                with tempfile.TemporaryDirectory(prefix=f"{path.name}.partial-", dir=path.parent) as scratch:
                    partial = Path(scratch, path.name)
                    make(partial)
                    partial.rename(path)
            _prune(path.parent, path.suffix)
    os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))  # accessed now
    return path


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold `lock`, so that two processes that make one thing wait for each other."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process makes what is needed here: waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prune(folder: Path, suffix: str) -> None:
    """Remove what nobody asked for in the last hours, but for the newest few: a set of images has 2 GB."""
    entries = [path for path in folder.iterdir() if path.suffix == suffix]
    for path in sorted(entries, key=lambda p: p.stat().st_atime, reverse=True)[_KEEP:]:
        if time.time() - path.stat().st_atime > _UNUSED_SECONDS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
