"""Ways to read a batch, each in its own words; the caller measures them in turns."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import NamedTuple

import numpy as np
import usrbio
from hf3fs_fuse import io as dropin

BLOCK = 4096
BATCH = 128
POOL = 64
"""Batches of offsets, made before the clock starts: more than are read before a cache is emptied."""

UNCACHED = 0.05
"""Seconds after which `preadv_loop` empties the mount's cache."""


class Round(NamedTuple):
    reads: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.reads / self.seconds


Contender = Callable[[float], Round]
"""Reads for so many seconds."""


def looped(size: int, read: Callable[[np.ndarray], None]) -> Contender:
    """A contender that calls `read` with random offsets, in batches."""
    random = np.random.default_rng(7)
    pool = list(random.integers(0, size // BLOCK, (POOL, BATCH)) * BLOCK)

    def run(seconds: float) -> Round:
        reads, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds or reads == 0:
            read(pool[reads // BATCH % POOL])
            reads += BATCH
        return Round(reads, elapsed)

    return run


def array_call(path: Path, stack: ExitStack) -> Contender:
    """`ring.read` with three NumPy arrays."""
    mount = usrbio.Mount(path)
    ring = stack.enter_context(usrbio.Ring(mount, BATCH))
    iov = stack.enter_context(usrbio.Iov(mount, BATCH * BLOCK))
    file = stack.enter_context(usrbio.File(path))
    lengths, places = np.full(BATCH, BLOCK), np.arange(BATCH) * BLOCK

    def read(offsets: np.ndarray) -> None:
        results = ring.read(file, offsets, lengths, iov, places)
        assert results[0] == BLOCK

    return looped(file.size, read)


def preadv_loop(path: Path, stack: ExitStack, *, cached: bool = True) -> Contender:
    """`os.preadv` into one buffer for each read, as a program without rings would.

    Not `cached`: the mount's own page cache is emptied now and then, or the reads would stop to reach the
    daemon. With passthrough a mount has none.
    """
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    buffers = [[memoryview(bytearray(BLOCK))] for _ in range(BATCH)]

    def read(offsets: np.ndarray) -> None:
        # Plain ints: NumPy's would make the loop slower for no reason of preadv's.
        for buffer, offset in zip(buffers, offsets.tolist(), strict=True):
            os.preadv(fd, buffer, offset)

    run = looped(os.fstat(fd).st_size, read)
    if cached:
        return run

    def run_uncached(seconds: float) -> Round:
        reads, spent = 0, 0.0
        while spent < seconds:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            part = run(min(seconds, UNCACHED))
            reads, spent = reads + part.reads, spent + part.seconds
        return Round(reads, spent)

    return run_uncached


def drop_in(path: Path, stack: ExitStack) -> Contender:
    """`hf3fs_fuse.io`: a prepare for each read."""
    mount = str(usrbio.Mount(path).path)
    shm = SharedMemory(create=True, size=BATCH * BLOCK)
    stack.callback(shm.close)
    iov = dropin.make_iovec(shm, mount)
    shm.unlink()
    ior = dropin.make_ioring(mount, BATCH)
    stack.callback(ior.ior.destroy)
    fd = os.open(path, os.O_RDONLY)
    stack.callback(os.close, fd)
    dropin.register_fd(fd)
    stack.callback(dropin.deregister_fd, fd)
    slices = [iov[i * BLOCK : (i + 1) * BLOCK] for i in range(BATCH)]

    def read(offsets: np.ndarray) -> None:
        for piece, offset in zip(slices, offsets.tolist(), strict=True):
            ior.prepare(piece, True, fd, offset)
        done = ior.submit().wait(min_results=BATCH)
        assert done[0].result == BLOCK

    return looped(os.fstat(fd).st_size, read)


@contextmanager
def c_client(path: Path, library: Path, build: Path) -> Iterator[Contender]:
    """A C program on the C library: a process that is told when to read."""
    source = Path(__file__).with_name("c_client.c")
    program = build / "c_client"
    headers = Path(__file__).parents[3] / "client-native" / "usrbio-capi" / "include"
    installed = build / "libusrbio.so"  # by this name programs look for it
    shutil.copy(library, installed)
    command = ["cc", "-O2", "-Wall", "-o", program, source, "-I", headers, installed, f"-Wl,-rpath,{build}"]
    subprocess.run(command, check=True)
    arguments = [program, usrbio.Mount(path).path, path, str(BLOCK), str(BATCH)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def run(seconds: float) -> Round:
            assert process.stdin
            assert process.stdout
            process.stdin.write(f"{seconds}\n")
            process.stdin.flush()
            reads, elapsed, _ = process.stdout.readline().split()
            return Round(int(reads), float(elapsed))

        yield run
        process.stdin.close()
