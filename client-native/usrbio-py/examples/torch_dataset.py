"""A torch Dataset that reads records through a USRBIO ring, a batch in one call.

    python torch_dataset.py /mnt/data/train.bin

It runs without torch too: a loop takes the DataLoader's place then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

import usrbio

try:
    # Unknown to mypy where there is no torch.
    from torch.utils.data import DataLoader, Dataset  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    DataLoader = None
    Dataset = object

RECORD = 4096
"""Bytes of a record; a file is one record after another."""

BATCH = 128

Records = npt.NDArray[np.uint8]


class RecordDataset(Dataset):  # type: ignore[misc, valid-type, unused-ignore]
    """Records of one file of a USRBIO mount.

    A DataLoader calls `__getitems__` with a batch's indexes. Ring and Iov are made by the process that reads
    first, so that each worker has its own, whether it was forked or spawned.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._count = os.stat(path).st_size // RECORD  # noqa: PTH116
        self._reader: _Reader | None = None

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indexes: Sequence[int]) -> list[Records]:
        """The records of a batch, in order."""
        if self._reader is None or self._reader.process != os.getpid():
            self._reader = _Reader(self._path)
        # A copy, because the next batch is read into the same Iov; collating makes a tensor of it.
        return list(self._reader.read(np.asarray(indexes)).copy())

    def __getitem__(self, index: int) -> Records:
        return self.__getitems__([index])[0]

    def __getstate__(self) -> dict[str, Any]:
        """What a spawned worker gets: no ring."""
        return {**self.__dict__, "_reader": None}


class _Reader:
    """Ring, Iov and file of one process."""

    def __init__(self, path: str) -> None:
        self.process = os.getpid()
        mount = usrbio.Mount(path)
        self._ring = usrbio.Ring(mount, BATCH)
        self._iov = usrbio.Iov(mount, BATCH * RECORD)
        self._file = usrbio.File(path)
        self._records = np.frombuffer(memoryview(self._iov), np.uint8).reshape(BATCH, RECORD)

    def read(self, indexes: npt.NDArray[np.int64]) -> Records:
        """The records with these indexes, at most BATCH, where the Iov has them."""
        self._ring.read(self._file, indexes * RECORD, RECORD, self._iov)
        records: Records = self._records[: len(indexes)]
        return records


def batches(dataset: RecordDataset) -> Iterator[Any]:
    """Shuffled batches, from worker processes if there is torch."""
    if DataLoader is not None:
        yield from DataLoader(dataset, batch_size=BATCH, shuffle=True, num_workers=2)
        return
    order = np.random.default_rng().permutation(len(dataset))
    for start in range(0, len(order), BATCH):
        yield np.stack(dataset.__getitems__(order[start : start + BATCH].tolist()))


def main() -> None:
    dataset = RecordDataset(sys.argv[1])
    count, total = 0, 0
    for batch in batches(dataset):
        count += len(batch)
        total += int(batch.sum())
    how = "a torch DataLoader" if DataLoader is not None else "a loop without torch"
    print(f"{count} records, their bytes add up to {total}, read by {how}")


if __name__ == "__main__":
    main()
