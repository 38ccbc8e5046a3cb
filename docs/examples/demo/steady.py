"""Reads batches through a ring for some seconds, checks each and prints the longest wait for one.

    steady.py MOUNT SECONDS

It prints `reading` once it reads: whoever wants to kill the daemon under it may do so then.
"""

import sys
import time
from pathlib import Path

import numpy as np
import usrbio
from compare import BATCH, BLOCK, BLOCKS, prepare, through_the_ring


def main(folder: Path, seconds: float) -> None:
    """Read for the time, then say how it went."""
    prepare(folder / "blocks.bin")
    chance = np.random.default_rng(1)
    with usrbio.Mount(str(folder)) as mount:
        read = through_the_ring(mount, folder / "blocks.bin")
        began = time.perf_counter()
        batches, longest = 0, 0.0
        while (now := time.perf_counter()) - began < seconds:
            read(chance.integers(0, BLOCKS, BATCH) * BLOCK)
            longest = max(longest, time.perf_counter() - now)
            batches += 1
            if batches == 1:
                print("reading", flush=True)
    print(f"{batches * BATCH:,} reads in {seconds:.0f} s, every byte as written;", end=" ")
    print(f"longest wait {longest * 1000:.0f} ms")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
