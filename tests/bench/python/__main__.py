"""`make bench-python`: what the Python package is worth, as ratios of two sides measured in turns in one run.

The exit status says whether every case could be run, not whether its target was met.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import timeit
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import contenders
import loader
import numpy as np
import usrbio
from contenders import BATCH, BLOCK, Contender
from fixture import Server, data_file, serving


@dataclass
class Line:
    """One comparison. `ratio`: how many times better ours is."""

    what: str
    against: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    lowest: float
    highest: float
    target: str = ""
    met: bool | None = None


@dataclass
class Pace:
    rounds: int
    seconds: float
    size: int


FULL = Pace(rounds=11, seconds=0.5, size=512 << 20)
QUICK = Pace(rounds=5, seconds=0.1, size=128 << 20)


def main() -> int:
    args = _arguments()
    pace = QUICK if args.quick else FULL
    library = Path(__file__).parents[3] / "client-native/target/release/libusrbio_capi.so"
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.dir, prefix="usrbio-bench-")))
        (top / "data").mkdir()
        data_file(top / "data" / "file", pace.size)
        fast = stack.enter_context(serving(top / "data", top / "mnt"))
        slow = stack.enter_context(serving(top / "data", top / "copying", "--no-passthrough"))
        print(_heading(pace))
        lines = _batches(fast, slow, pace, library, top)
        lines += _overhead(fast)
        lines += _loader(fast, pace, "")
        # On a disk's file system with large folios pread, too, is as fast as the memory is; tmpfs has none.
        folder = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="usrbio-bench-")
        memory = Path(stack.enter_context(folder))
        data_file(memory / "file", pace.size)
        in_memory = stack.enter_context(serving(memory, top / "memory"))
        lines += _loader(in_memory, pace, ", tmpfs")
    print(_table(lines))
    if args.json:
        args.json.write_text(json.dumps([asdict(line) for line in lines], indent=2) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench-python", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="less than a minute: shorter rounds, a smaller file"
    )
    parser.add_argument("--dir", default="/var/tmp", help="where the file goes (/var/tmp)")
    parser.add_argument("--json", type=Path, help="write the results here too")
    return parser.parse_args()


def _batches(fast: Server, slow: Server, pace: Pace, library: Path, build: Path) -> list[Line]:
    """Batches of 128 random reads of 4 KiB, by one thread."""
    with ExitStack() as stack:
        ours = contenders.array_call(fast.mount / "file", stack)
        client = stack.enter_context(contenders.c_client(fast.mount / "file", library, build))
        against: dict[str, tuple[Contender, float]] = {
            "C client": (client, 0.9),
            "os.preadv in a loop": (contenders.preadv_loop(fast.mount / "file", stack), 2),
            "os.preadv, no passthrough": (
                contenders.preadv_loop(slow.mount / "file", stack, cached=False),
                12,
            ),
            "hf3fs_fuse.io, ours": (contenders.drop_in(fast.mount / "file", stack), 0),
        }
        rates: dict[str, list[float]] = {name: [] for name in ("ours", *against)}
        everyone = {"ours": ours, **{name: contender for name, (contender, _) in against.items()}}
        for turn in range(pace.rounds + 1):
            order = list(everyone) if turn % 2 else list(reversed(everyone))
            for name in order:
                # The first round warms up.
                rate = everyone[name](pace.seconds / (1 if turn else 10)).rate
                if turn:
                    rates[name].append(rate)
        return [
            _compared(f"ring.read, {BATCH} x 4 KiB", name, rates["ours"], rates[name], "reads/s", target)
            for name, (_, target) in against.items()
        ]


def _overhead(fast: Server) -> list[Line]:
    """What a call of `ring.read` costs by itself: all but the ring, with the GIL released and taken again."""
    with ExitStack() as stack:
        path = fast.mount / "file"
        mount = usrbio.Mount(path)
        ring = stack.enter_context(usrbio.Ring(mount, BATCH))
        iov = stack.enter_context(usrbio.Iov(mount, BATCH * BLOCK))
        file = stack.enter_context(usrbio.File(path))
        offsets = np.random.default_rng(7).integers(0, file.size // BLOCK, BATCH) * BLOCK
        lengths, places = np.full(BATCH, BLOCK), np.arange(BATCH) * BLOCK
        rehearse = ring._core.rehearse
        times = timeit.repeat(lambda: rehearse(file, offsets, lengths, iov, places), number=2000, repeat=25)
    each = sorted(time / 2000 * 1e6 for time in times)
    cost = statistics.median(each)
    return [
        Line(f"a call for {BATCH} requests, no I/O", "", cost, 0, "µs", 0, each[0], each[-1], "<2", cost < 2)
    ]


def _loader(server: Server, pace: Pace, where: str) -> list[Line]:
    """Four processes that read records of 4 KiB to 1 MiB for a fifth."""
    sides: dict[str, list[loader.Round]] = {"rings": [], "pread": [], "preadv": []}
    with loader.running(server.mount / "file") as running:
        for turn in range(pace.rounds + 1):
            order = list(sides) if turn % 2 else list(reversed(sides))
            for way in order:
                before = server.cpu_seconds()
                measured = running.measure(way, pace.seconds)
                daemon = server.cpu_seconds() - before
                if turn:
                    sides[way].append(measured._replace(cpu_seconds=measured.cpu_seconds + daemon))
    rates = {way: [r.bytes / r.seconds / (1 << 20) for r in rounds] for way, rounds in sides.items()}
    cpu = {way: [r.cpu_seconds / r.bytes * (1 << 30) for r in rounds] for way, rounds in sides.items()}
    what = f"{loader.WORKERS} workers, records of 4 KiB to 1 MiB{where}"
    lines = []
    for way, against, target, thrift in (
        ("pread", "os.pread", 1.3, 1),
        ("preadv", "os.preadv into shared memory", 0, 0),
    ):
        lines.append(_compared(what, against, rates["rings"], rates[way], "MiB/s", target))
        line = _compared(what + ": CPU", against, cpu[way], cpu["rings"], "s/GiB", thrift)
        line.ours, line.theirs = line.theirs, line.ours
        lines.append(line)
    return lines


def _compared(
    what: str, against: str, ours: Sequence[float], theirs: Sequence[float], unit: str, target: float
) -> Line:
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    ratio = statistics.median(ratios)
    met = ratio >= target if target else None
    said = f"≥{target:g}" if target else ""
    ours_median, theirs_median = statistics.median(ours), statistics.median(theirs)
    return Line(what, against, ours_median, theirs_median, unit, ratio, ratios[0], ratios[-1], said, met)


def _heading(pace: Pace) -> str:
    load = os.getloadavg()[0]
    return (
        f"Linux {platform.release()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load before the run {load:.1f}; a file of {pace.size >> 20} MiB in the page cache.\n"
        f"Each line: medians of {pace.rounds} rounds of {pace.seconds:g} s that alternate between both "
        "sides. Ratio: how many times better ours is; rounds: lowest and highest ratio of one.\n"
    )


def _table(lines: Sequence[Line]) -> str:
    rows = [["what", "against", "ours", "theirs", "", "ratio", "rounds", "target", ""]]
    for line in lines:
        number = ",.0f" if line.unit == "reads/s" else ",.2f"
        compared = line.against != ""
        rows.append([
            line.what,
            line.against,
            format(line.ours, number),
            format(line.theirs, number) if compared else "",
            line.unit,
            f"{line.ratio:.2f}x" if compared else "",
            f"[{line.lowest:.2f}, {line.highest:.2f}]",
            line.target,
            {True: "ok", False: "MISS", None: ""}[line.met],
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = (2, 3, 5, 6)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


if __name__ == "__main__":
    sys.exit(main())
