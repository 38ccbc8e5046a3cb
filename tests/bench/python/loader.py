"""A loop like a DataLoader's: worker processes read batches of records of many sizes, a trainer gets them.

As with torch's, a batch reaches the trainer in shared memory, a worker is some batches ahead, and the queues
carry only numbers. What differs is how a record gets into the shared memory:

* `rings`: it is the Iov, and the daemon reads into it;
* `pread`: the worker copies what `os.pread` gave it, as a worker of torch's does with a sample;
* `preadv`: the worker gives `os.preadv` the place, which spares it that copy.
"""

import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as ready
from pathlib import Path
from typing import NamedTuple

import numpy as np
import usrbio

WORKERS = 4
RECORDS = 32
"""In a batch."""

SMALLEST, LARGEST = 4 << 10, 1 << 20
POOL = 32
AHEAD = 2
"""Batches that a worker is asked for at once; torch's `prefetch_factor`."""


class Round(NamedTuple):
    bytes: int
    seconds: float
    cpu_seconds: float
    """Of trainer and workers."""


class Batch(NamedTuple):
    offsets: np.ndarray
    lengths: np.ndarray
    places: np.ndarray
    """In its slot, one record after another."""


class Task(NamedTuple):
    """What a worker is asked for; it answers with the same when that is done."""

    way: str
    batch: int
    slot: int


def batches(size: int) -> list[Batch]:
    """Random places, and sizes evenly spread over the magnitudes."""
    random = np.random.default_rng(1)
    made = []
    for _ in range(POOL):
        lengths = np.exp(random.uniform(np.log(SMALLEST), np.log(LARGEST), RECORDS)).astype(np.int64)
        places = np.cumsum(lengths) - lengths
        made.append(Batch(random.integers(0, size - LARGEST, RECORDS), lengths, places))
    return made


def slots(iov: usrbio.Iov) -> np.ndarray:
    """The Iov's bytes, a row for each batch that may be under way."""
    return np.frombuffer(iov, np.uint8).reshape(WORKERS * AHEAD, -1)


class Loader:
    """The trainer's side."""

    def __init__(self, iov: usrbio.Iov, pool: Sequence[Batch], workers: Sequence[Connection]):
        self._memory = slots(iov)
        self._pool = pool
        self._workers = workers

    def measure(self, way: str, seconds: float) -> Round:
        """Takes batches for so long."""
        cpu, start, count, asked = self._cpu(), time.perf_counter(), 0, 0
        for number, worker in enumerate(self._workers):
            for ahead in range(AHEAD):
                worker.send(Task(way, asked % POOL, number * AHEAD + ahead))
                asked += 1
        outstanding = asked
        while outstanding:
            for worker in ready(self._workers):
                assert isinstance(worker, Connection)
                done: Task = worker.recv()
                outstanding -= 1
                count += self._use(done)
                if time.perf_counter() - start < seconds:
                    worker.send(Task(way, asked % POOL, done.slot))
                    asked += 1
                    outstanding += 1
        return Round(count, time.perf_counter() - start, self._cpu() - cpu)

    def _use(self, task: Task) -> int:
        """Looks at a word of each record: it tells its own place in the file (see fixture.data_file)."""
        batch, slot = self._pool[task.batch], self._memory[task.slot]
        for offset, place in zip(batch.offsets.tolist(), batch.places.tolist(), strict=True):
            at = place - offset % -8
            assert slot[at : at + 8].view(np.uint64)[0] == offset - offset % -8
        return int(batch.lengths.sum())

    def _cpu(self) -> float:
        for worker in self._workers:
            worker.send(None)
        return cpu_seconds() + sum(worker.recv() for worker in self._workers)


def work(
    path: Path, iov: usrbio.Iov, pool: Sequence[Batch], trainer: Connection, inherited: Connection
) -> None:
    """A worker, until the trainer hangs up: its end, which a fork copied, must not keep it waiting."""
    inherited.close()
    with ExitStack() as stack:
        ring = stack.enter_context(usrbio.Ring(usrbio.Mount(path), RECORDS))
        file = stack.enter_context(usrbio.File(path))
        memory = slots(iov)
        fd = os.open(path, os.O_RDONLY)
        stack.callback(os.close, fd)

        def rings(batch: Batch, slot: int) -> None:
            places = batch.places + slot * memory.shape[1]
            ring.read(file, batch.offsets, batch.lengths, iov, places)

        def pread(batch: Batch, slot: int) -> None:
            for offset, length, place in rows(batch):
                record = os.pread(fd, length, offset)
                memory[slot, place : place + length] = np.frombuffer(record, np.uint8)

        def preadv(batch: Batch, slot: int) -> None:
            for offset, length, place in rows(batch):
                os.preadv(fd, [memory[slot, place : place + length]], offset)

        ways: dict[str, Callable[[Batch, int], None]] = {"rings": rings, "pread": pread, "preadv": preadv}
        trainer.send(None)
        while True:
            try:
                task: Task | None = trainer.recv()
            except EOFError:
                return
            if task is None:
                trainer.send(cpu_seconds())
            else:
                ways[task.way](pool[task.batch], task.slot)
                trainer.send(task)


def rows(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Offset, length and place of each record."""
    return zip(batch.offsets.tolist(), batch.lengths.tolist(), batch.places.tolist(), strict=True)


def cpu_seconds() -> float:
    """Of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def running(path: Path) -> Iterator[Loader]:
    """The workers, forked and ready."""
    context = multiprocessing.get_context("fork")
    with ExitStack() as stack:
        pool = batches(path.stat().st_size)
        largest = max(int(batch.lengths.sum()) for batch in pool)
        slot = -(-largest // 4096) * 4096
        iov = stack.enter_context(usrbio.Iov(usrbio.Mount(path), WORKERS * AHEAD * slot))
        workers = []
        for _ in range(WORKERS):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(path, iov, pool, theirs, ours))
            process.start()
            theirs.close()
            # In reverse at the end: a worker has our ends of those before it, too.
            stack.callback(process.join, 30)
            stack.callback(ours.close)
            workers.append(ours)
        for worker in workers:
            worker.recv()
        yield Loader(iov, pool, workers)
