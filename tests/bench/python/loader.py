"""A loop like a DataLoader's: worker processes that read batches of records of many sizes."""

import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import usrbio

WORKERS = 4
RECORDS = 32
"""In a batch."""

SMALLEST, LARGEST = 4 << 10, 1 << 20
POOL = 32


class Round(NamedTuple):
    bytes: int
    seconds: float
    cpu_seconds: float
    """Of the worker."""


class Batch(NamedTuple):
    offsets: np.ndarray
    lengths: np.ndarray


def batches(size: int, seed: int) -> list[Batch]:
    """Random places, and sizes evenly spread over the magnitudes."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(POOL):
        lengths = np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST), RECORDS)).astype(np.int64)
        made.append(Batch(random.integers(0, size - LARGEST, RECORDS), lengths))
    return made


def check(record: np.ndarray, offset: int) -> None:
    """A word of the record is what it should be: its own place in the file (see fixture.data_file)."""
    skip = -offset % 8
    assert record[skip : skip + 8].view(np.uint64)[0] == offset + skip


def work(path: Path, seed: int, parent: Connection) -> None:
    """A worker: each message (way, seconds) is one round."""
    with ExitStack() as stack:
        mount = usrbio.Mount(path)
        ring = stack.enter_context(usrbio.Ring(mount, RECORDS))
        iov = stack.enter_context(usrbio.Iov(mount, RECORDS * LARGEST))
        file = stack.enter_context(usrbio.File(path))
        memory = np.frombuffer(iov, np.uint8)
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)
        pool = batches(file.size, seed)

        def rings(batch: Batch) -> None:
            ring.read(file, batch.offsets, batch.lengths, iov)
            place = 0
            for offset, length in zip(batch.offsets.tolist(), batch.lengths.tolist(), strict=True):
                check(memory[place : place + length], offset)
                place += length

        def pread(batch: Batch) -> None:
            # As a Dataset does: a batch of records, each an object of its own.
            records = [
                os.pread(fd, length, offset)
                for offset, length in zip(batch.offsets.tolist(), batch.lengths.tolist(), strict=True)
            ]
            for offset, record in zip(batch.offsets.tolist(), records, strict=True):
                check(np.frombuffer(record, np.uint8), offset)

        ways = {"rings": rings, "pread": pread}
        parent.send(None)
        while message := parent.recv():
            way, seconds = message
            read, count, turn = ways[way], 0, 0
            start, cpu = time.perf_counter(), _cpu()
            while (elapsed := time.perf_counter() - start) < seconds:
                read(pool[turn % POOL])
                count += int(pool[turn % POOL].lengths.sum())
                turn += 1
            parent.send(Round(count, elapsed, _cpu() - cpu))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def workers(path: Path) -> Iterator[list[Connection]]:
    """The workers, ready to be told what to do."""
    context = multiprocessing.get_context("fork")
    connections, processes = [], []
    for seed in range(WORKERS):
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(path, seed, theirs))
        process.start()
        connections.append(ours)
        processes.append(process)
    for connection in connections:
        connection.recv()
    yield connections
    for connection in connections:
        connection.send(None)
    for process in processes:
        process.join(30)


def measure(connections: list[Connection], way: str, seconds: float) -> Round:
    """One round of all workers together."""
    for connection in connections:
        connection.send((way, seconds))
    rounds: list[Round] = [connection.recv() for connection in connections]
    return Round(
        sum(r.bytes for r in rounds), max(r.seconds for r in rounds), sum(r.cpu_seconds for r in rounds)
    )
