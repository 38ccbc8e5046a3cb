"""A tenant that uses all that a volume offers, checks every byte of it, and measures what each call takes.

It runs in a pod until /dev/shm/stop is there. /dev/shm/phase names what goes on around it; /dev/shm/stats has
the latencies of each phase so far, as JSON: {phase: {kind: [calls, p50, p99, longest]}}, in seconds.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import random
import time
from array import array
from collections import defaultdict

import usrbio

RECORD, RECORDS, BATCH = 4096, 1024, 32
DATA = pathlib.Path("/data")
SHM = pathlib.Path("/dev/shm")
KEPT = 5_000
"""Latencies of a kind and phase that are kept: a bound for its memory that no phase of a test reaches."""


def record(number: int) -> bytes:
    """What record `number` of the data set holds: nothing that another tenant's file could hold."""
    return hashlib.sha256(b"neighbour %d" % number).digest() * (RECORD // 32)


def publish(name: str, content: str) -> None:
    """Writes a file of /dev/shm such that a reader sees it whole."""
    new = SHM / f"{name}.new"
    new.write_text(content)
    new.replace(SHM / name)


def summary(latencies: "dict[str, dict[str, list[float]]]") -> str:
    """The statistics as JSON."""
    return json.dumps(
        {
            phase: {
                kind: [len(seen), *(sorted(seen)[int(len(seen) * q)] for q in (0.5, 0.99)), max(seen)]
                for kind, seen in kinds.items()
            }
            for phase, kinds in latencies.items()
        }
    )


def names(number: int) -> None:
    """The life of a file: made, renamed, looked at, removed."""
    path = DATA / f"work/{number % 64}"
    path.write_bytes(b"x" * 100)
    other = path.replace(DATA / f"work/renamed-{number % 64}")
    assert other.stat().st_size == 100
    assert other.read_bytes() == b"x" * 100
    other.unlink()


def listing(_: int) -> None:
    """A directory has what was put there, and nothing else."""
    assert sorted(os.listdir(DATA / "listed")) == [f"{i:02}" for i in range(50)]


def opening(number: int) -> None:
    """A file is opened, read and closed."""
    with open(DATA / f"listed/{number % 50:02}") as file:
        assert file.read() == f"content {number % 50}"


def locking(number: int) -> None:
    """A byte range is locked and unlocked."""
    with open(DATA / "locked", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, number % 1000)
        fcntl.lockf(file, fcntl.LOCK_UN, 10, number % 1000)


def prepare() -> None:
    """The files that it works on."""
    (DATA / "work").mkdir()
    (DATA / "listed").mkdir()
    for i in range(50):
        (DATA / f"listed/{i:02}").write_text(f"content {i}")
    (DATA / "locked").write_bytes(bytes(2000))
    (DATA / "records").write_bytes(b"".join(map(record, range(RECORDS))))


def main() -> None:
    """Works until it is told to stop; any wrong byte or error ends it with a traceback."""
    prepare()
    expected = [record(number) for number in range(RECORDS)]
    latencies: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (
        usrbio.Mount(str(DATA)) as mount,
        usrbio.Ring(mount, BATCH) as ring,
        usrbio.Iov(mount, BATCH * RECORD) as iov,
        usrbio.File(str(DATA / "records")) as file,
    ):

        def reading(_: int) -> None:
            """A batch of records comes through the ring, each the right one."""
            wanted = [random.randrange(RECORDS) for _ in range(BATCH)]
            got = ring.read(file, array("q", [number * RECORD for number in wanted]), RECORD, iov)
            assert list(got) == [RECORD] * BATCH
            seen = memoryview(iov).cast("B")
            for at, number in enumerate(wanted):
                assert seen[at * RECORD : (at + 1) * RECORD] == expected[number], number

        kinds = {"ring": reading, "names": names, "list": listing, "open": opening, "lock": locking}
        number, told = 0, time.monotonic()
        phase = "alone"
        while not (SHM / "stop").exists():
            for kind, work in kinds.items():
                begun = time.monotonic()
                work(number)
                kept = latencies[phase][kind]
                if len(kept) < KEPT:
                    kept.append(time.monotonic() - begun)
            number += 1
            time.sleep(0.002)
            if time.monotonic() - told > 0.5:
                publish("stats", summary(latencies))
                told = time.monotonic()
                if (SHM / "phase").exists():
                    phase = (SHM / "phase").read_text()
        publish("stats", summary(latencies))
    print("unharmed")


main()
