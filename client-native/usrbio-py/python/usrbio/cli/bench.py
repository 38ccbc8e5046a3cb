"""`usrbio bench`: rings beside a loop of os.preadv, on the mount at hand."""

import argparse
import contextlib
import json
import os
import random
import statistics
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import usrbio
from usrbio.cli._common import add_command, byte_count, human, positive, table

if TYPE_CHECKING:
    from usrbio.cli._common import Commands

_EXAMPLES = """  usrbio bench /mnt/data                          random 4 KiB reads, 128 in one call
  usrbio bench /mnt/data --block 64K --batch 32
  usrbio bench /mnt/data/train.bin --json         of a file that is there
"""

_ROUNDS = 7

Batch = Callable[["array[int]"], None]


@dataclass
class Line:
    """What one way of reading came to: medians over the rounds."""

    way: str
    reads_per_second: float
    bytes_per_second: float
    cpu_microseconds_per_read: float
    times_preadv: float


def add_to(commands: "Commands") -> None:
    """Adds the command."""
    parser = add_command(
        commands, "bench", "measure random reads through a ring beside a loop of os.preadv", _EXAMPLES
    )
    parser.add_argument(
        "path", metavar="PATH", help="a directory of the mount (a test file is made there), or a file"
    )
    parser.add_argument(
        "--block", type=byte_count, default=4096, metavar="BYTES", help="bytes of a read (4K)"
    )
    parser.add_argument("--batch", type=positive, default=128, metavar="N", help="reads in one call (128)")
    parser.add_argument(
        "--size", type=byte_count, default=256 << 20, metavar="BYTES", help="of the test file (256M)"
    )
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="for each way of reading (3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measures and prints."""
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(_file(args.path, args.size))
        lines = measure(path, args.block, args.batch, args.seconds)
    workload = (
        f"random reads of {human(args.block)} from {path}, cached, {args.batch} in one call, one thread"
    )
    if args.json:
        print(json.dumps({"workload": workload, "lines": [asdict(line) for line in lines]}, indent=2))
    else:
        print(f"{workload}; medians of {_ROUNDS} rounds\n\n{_report(lines)}")
    return 0


def measure(path: str, block: int, batch: int, seconds: float) -> list[Line]:
    """Reads `path` in each way, in turns, for about `seconds` each; the first line is the loop of preadv."""
    blocks = Path(path).stat().st_size // block
    if blocks == 0:
        raise ValueError(f"{path} is smaller than one read of {block} bytes")
    with contextlib.ExitStack() as stack:
        ways = dict(_ways(path, block, batch, stack))
        rates: dict[str, list[float]] = {way: [] for way in ways}
        cpu: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(_ROUNDS):
            for way, read in ways.items():
                reads, elapsed, used = _round(read, block, blocks, batch, seconds / _ROUNDS)
                rates[way].append(reads / elapsed)
                cpu[way].append(used / reads * 1e6)
    slow = next(iter(rates))
    return [
        Line(
            way,
            statistics.median(rates[way]),
            statistics.median(rates[way]) * block,
            statistics.median(cpu[way]),
            statistics.median(ours / theirs for ours, theirs in zip(rates[way], rates[slow], strict=True)),
        )
        for way in ways
    ]


def _ways(path: str, block: int, batch: int, stack: contextlib.ExitStack) -> Iterator[tuple[str, Batch]]:
    mount = usrbio.Mount(path)
    ring = stack.enter_context(usrbio.Ring(mount, 2 * batch))
    # First of all: it says when there is not enough memory for so much.
    iov = stack.enter_context(usrbio.Iov(mount, 2 * batch * block))
    file = stack.enter_context(usrbio.File(path))
    fd = file.fileno()
    buffers = [[bytearray(block)] for _ in range(batch)]

    def preadv(offsets: "array[int]") -> None:
        for buffer, offset in zip(buffers, offsets, strict=True):
            os.preadv(fd, buffer, offset)

    def one_batch(offsets: "array[int]") -> None:
        ring.read(file, offsets, block, iov)

    places = [[start * block + i * block for i in range(batch)] for start in (0, batch)]
    halves = [array("q", place) for place in places]
    in_flight: list[usrbio.Batch] = []

    def two_batches(offsets: "array[int]") -> None:
        in_flight.append(ring.submit(file, offsets, block, iov, halves[0]))
        halves.reverse()
        if len(in_flight) > 1:
            in_flight.pop(0).wait()

    yield "os.preadv in a loop", preadv
    yield "ring.read", one_batch
    yield "ring.submit, two batches in flight", two_batches


def _round(read: Batch, block: int, blocks: int, batch: int, seconds: float) -> tuple[int, float, float]:
    """Reads, seconds and seconds of CPU of this process."""
    # Made before the clock starts: it is the reads that count.
    pool = [array("q", (random.randrange(blocks) * block for _ in range(batch))) for _ in range(64)]
    reads = 0
    start, cpu = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds or reads == 0:
        read(pool[reads // batch % len(pool)])
        reads += batch
    return reads, elapsed, time.process_time() - cpu


@contextlib.contextmanager
def _file(path: str, size: int) -> Iterator[str]:
    """The file at `path`, or a new one of `size` bytes in that directory."""
    if not Path(path).is_dir():
        yield path
        return
    usrbio.Mount(path)  # or else it says what is wrong before a large file is written
    with tempfile.NamedTemporaryFile(dir=path, prefix=".usrbio-bench-") as file:
        chunk = random.randbytes(1 << 20)
        for start in range(0, size, len(chunk)):
            file.write(chunk[: size - start])
        file.flush()
        yield file.name


def _report(lines: list[Line]) -> str:
    rows = [["", "reads/s", "bytes/s", "CPU per read", "times preadv"]]
    rows += (
        [
            line.way,
            f"{line.reads_per_second:,.0f}",
            human(line.bytes_per_second),
            f"{line.cpu_microseconds_per_read:.2f} µs",
            f"{line.times_preadv:.2f}x",
        ]
        for line in lines
    )
    return table(rows)
