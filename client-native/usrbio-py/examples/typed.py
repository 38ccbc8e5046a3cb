"""The package's types, as a program uses them: mypy checks this file, and the tests run it.

python typed.py /mnt/data/file
"""

import asyncio
import sys
from array import array

import numpy as np
import numpy.typing as npt

import usrbio


def read(path: str, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Copies of 16 bytes at each offset."""
    with (
        usrbio.Mount(path) as mount,
        usrbio.Ring(mount, 8) as ring,
        usrbio.Iov(mount, 16 * len(offsets)) as iov,
        usrbio.File(path) as file,
    ):
        results: array[int] = ring.read(file, offsets, 16, iov)
        assert sum(results) == 16 * len(offsets)  # noqa: S101
        batch: usrbio.Batch = ring.submit([file, file], [0, 16], array("q", [16, 16]), iov, range(0, 32, 16))
        assert list(asyncio.run(result(batch))) == [16, 16]  # noqa: S101
        copies: npt.NDArray[np.uint8] = np.frombuffer(memoryview(iov), np.uint8).copy()
        return copies


async def result(batch: usrbio.Batch) -> "array[int]":
    """What `batch` comes to."""
    return await batch


def main() -> None:
    print(read(sys.argv[1], np.array([0, 16, 32], np.int64)).tobytes())


if __name__ == "__main__":
    main()
