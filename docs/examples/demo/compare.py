"""4 KiB random reads from Python, three ways side by side.

    compare.py MOUNT SLOW_MOUNT

MOUNT is a kube3fs volume, SLOW_MOUNT one that was mounted with passthrough off: plain FUSE. The same data is
read in all three ways, in turns, and every batch is checked against what was written. Each round reads every
block once, in random order, with nothing of it in the mount's own cache, as if the data were larger than the
memory; the file below is in the node's memory.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import usrbio

BLOCK = 4096
BLOCKS = 16384
BATCH = 128
ROUNDS = 7

Offsets = npt.NDArray[np.int64]


def prepare(path: Path) -> None:
    """64 MiB in which each block begins with its number."""
    if path.exists() and path.stat().st_size == BLOCK * BLOCKS:
        return
    blocks = np.random.default_rng(0).integers(0, 256, (BLOCKS, BLOCK), np.uint8)
    blocks[:, :8] = np.arange(BLOCKS, dtype="<u8").view(np.uint8).reshape(-1, 8)
    path.write_bytes(blocks.tobytes())


def check(seen: npt.NDArray[np.uint8], offsets: Offsets) -> None:
    """Each block must begin with its number."""
    numbers = seen.reshape(-1, BLOCK)[:, :8].copy().view("<u8")[:, 0]
    if not np.array_equal(numbers, offsets // BLOCK):
        sys.exit("wrong data was read")


def through_system_calls(path: Path) -> Callable[[Offsets], None]:
    """One preadv for each block."""
    descriptor = os.open(path, os.O_RDONLY)
    buffer = np.zeros(BATCH * BLOCK, np.uint8)
    views = [memoryview(buffer)[at * BLOCK : (at + 1) * BLOCK] for at in range(BATCH)]

    def read(offsets: Offsets) -> None:
        for view, offset in zip(views, offsets.tolist(), strict=True):
            os.preadv(descriptor, [view], offset)
        check(buffer, offsets)

    return read


def through_the_ring(mount: usrbio.Mount, path: Path) -> Callable[[Offsets], None]:
    """One call for the whole batch."""
    ring, iov, file = usrbio.Ring(mount, BATCH), usrbio.Iov(mount, BATCH * BLOCK), usrbio.File(str(path))

    def read(offsets: Offsets) -> None:
        ring.read(file, offsets, BLOCK, iov)
        check(np.frombuffer(iov, np.uint8), offsets)

    return read


def rate(read: Callable[[Offsets], None], path: Path, chance: np.random.Generator) -> float:
    """Reads per second of one round."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    batches = np.split(chance.permutation(BLOCKS) * BLOCK, BLOCKS // BATCH)
    began = time.perf_counter()
    for offsets in batches:
        read(offsets)
    return BLOCKS / (time.perf_counter() - began)


def main(fast: Path, slow: Path) -> None:
    """Measure and print the table."""
    for folder in (fast, slow):
        prepare(folder / "blocks.bin")
    with usrbio.Mount(str(fast)) as mount:
        there, here = slow / "blocks.bin", fast / "blocks.bin"
        ways = {
            "plain FUSE (passthrough off), preadv": (through_system_calls(there), there),
            "kube3fs mount (passthrough), preadv": (through_system_calls(here), here),
            f"USRBIO, {BATCH} reads a call": (through_the_ring(mount, here), here),
        }
        chance = np.random.default_rng(1)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, (read, path) in ways.items():
                rates[name].append(rate(read, path, chance))
    best = {name: float(np.median(values)) for name, values in rates.items()}
    base = next(iter(best.values()))
    print(f"{'4 KiB random reads from Python, checked':42}{'reads/s':>10}{'ratio':>8}")
    for name, value in best.items():
        print(f"{name:42}{value:>10,.0f}{value / base:>7.1f}x")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
