"""A torch Dataset whose workers read through USRBIO rings, and a trainer that gets records without a copy.

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
    import torch  # type: ignore[import-not-found, unused-ignore]
    from torch.utils.data import (  # type: ignore[import-not-found, unused-ignore]
        BatchSampler,
        DataLoader,
        Dataset,
        RandomSampler,
        get_worker_info,
    )
except ImportError:
    torch = None
    Dataset = object

RECORD = 4096
"""Bytes of a record; a file is one record after another."""

BATCH = 128
WORKERS = 2
AHEAD = 2
"""Batches that a worker reads ahead."""

SLOTS = AHEAD + 1
"""Places for batches that each worker has: those ahead, and the one that the trainer looks at."""


class RecordDataset(Dataset):  # type: ignore[misc, valid-type, unused-ignore]
    """Batches of records of one file of a USRBIO mount.

    The index of a batch is a list of the numbers of its records. A worker reads them into a slot of the
    Iov, which it shares with the trainer as its child (so workers must be forked), and hands over only which
    slot and how many records. It uses a slot again when the trainer has taken its next batch; so there is one
    loop at a time over a dataset.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._count = os.stat(path).st_size // RECORD  # noqa: PTH116
        self._reader: _Reader | None = None
        self.iov = usrbio.Iov(usrbio.Mount(path), WORKERS * SLOTS * BATCH * RECORD)

    def __len__(self) -> int:
        """Records."""
        return self._count

    def __getitem__(self, indexes: Sequence[int]) -> tuple[int, int]:
        """Reads a batch: its slot and how many records it has."""
        if self._reader is None or self._reader.process != os.getpid():
            self._reader = _Reader(self._path, self.iov)
        return self._reader.read(np.asarray(indexes))


class _Reader:
    """Ring and file of one process: a ring belongs to the process that made it."""

    def __init__(self, path: str, iov: usrbio.Iov) -> None:
        self.process = os.getpid()
        self._ring = usrbio.Ring(usrbio.Mount(path), BATCH)
        self._file = usrbio.File(path)
        self._iov = iov
        worker = get_worker_info() if torch is not None else None
        self._first = worker.id * SLOTS if worker else 0
        self._turn = 0

    def read(self, indexes: npt.NDArray[np.int64]) -> tuple[int, int]:
        slot = self._first + self._turn % SLOTS
        self._turn += 1
        places = (slot * BATCH + np.arange(len(indexes))) * RECORD
        lengths = self._ring.read(self._file, indexes * RECORD, RECORD, self._iov, places)
        if min(lengths) < RECORD:
            raise EOFError("the file has become shorter: the slot still has records of an older batch")
        return slot, len(indexes)


def batches(dataset: RecordDataset) -> Iterator[Any]:
    """Shuffled batches, uint8 of shape (records, RECORD). Each is good until the next is taken."""
    if torch is None:
        slots = np.frombuffer(memoryview(dataset.iov), np.uint8).reshape(-1, BATCH, RECORD)
        order = np.random.default_rng().permutation(len(dataset))
        places = (dataset[order[start : start + BATCH].tolist()] for start in range(0, len(order), BATCH))
    else:
        slots = torch.from_dlpack(dataset.iov).view(-1, BATCH, RECORD)
        places = DataLoader(
            dataset,
            batch_size=None,  # an index is a whole batch
            sampler=BatchSampler(RandomSampler(range(len(dataset))), BATCH, drop_last=False),
            num_workers=WORKERS,
            prefetch_factor=AHEAD,
            multiprocessing_context="fork",
        )
    for slot, count in places:
        yield slots[slot, :count]


def main() -> None:
    dataset = RecordDataset(sys.argv[1])
    count, total = 0, 0
    for batch in batches(dataset):
        count += len(batch)
        total += int(batch.sum())
    how = "a torch DataLoader" if torch is not None else "a loop without torch"
    print(f"{count} records, their bytes add up to {total}, read by {how}")


if __name__ == "__main__":
    main()
