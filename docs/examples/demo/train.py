"""Trains a small model on the digits data set, whose records it reads through a USRBIO ring.

    train.py FOLDER      a folder of a kube3fs volume

The first run writes the data set into FOLDER/digits.bin: 1 797 records of 65 bytes, an 8x8 picture of a
written digit and which digit it is (UCI Optical Recognition of Handwritten Digits, from scikit-learn's
wheel). Each batch of training is then one call that reads 64 random records into shared memory, where NumPy
uses them.
"""

import gzip
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import usrbio

RECORD = 65
BATCH = 64
EPOCHS = 30
TRAINING = 1437
"""Records to learn from; the other 360 are for the examination."""

Array = npt.NDArray[np.float64]


def prepare(path: Path) -> None:
    """Write the data set, one record after another."""
    if not path.exists():
        source = Path(__file__).with_name("digits.csv.gz")
        with gzip.open(source, "rt") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
        np.random.default_rng(0).shuffle(table)
        path.write_bytes(table.tobytes())


class Records:
    """Random batches of one file, each read by one call."""

    def __init__(self, mount: usrbio.Mount, path: Path) -> None:
        self._ring = usrbio.Ring(mount, BATCH)
        self._iov = usrbio.Iov(mount, BATCH * RECORD)
        self._file = usrbio.File(str(path))

    def batch(self, numbers: npt.NDArray[np.int64]) -> tuple[Array, npt.NDArray[np.uint8]]:
        """Pictures and digits of these records."""
        self._ring.read(self._file, numbers * RECORD, RECORD, self._iov)
        records = np.frombuffer(self._iov, np.uint8, len(numbers) * RECORD).reshape(-1, RECORD)
        return records[:, :64] / 16.0, records[:, 64]


def probabilities(pictures: Array, weights: Array, bias: Array) -> Array:
    """Softmax of a linear model."""
    scores = pictures @ weights + bias
    exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Array = exponents / exponents.sum(axis=1, keepdims=True)
    return result


def main(folder: Path) -> None:
    """Train and print the accuracy on records that were not trained on."""
    path = folder / "digits.bin"
    prepare(path)
    chance = np.random.default_rng(1)
    weights, bias = np.zeros((64, 10)), np.zeros(10)
    began = time.perf_counter()
    with usrbio.Mount(str(folder)) as mount:
        records = Records(mount, path)
        for _ in range(EPOCHS):
            for numbers in np.array_split(chance.permutation(TRAINING), TRAINING // BATCH + 1):
                pictures, digits = records.batch(numbers)
                error = probabilities(pictures, weights, bias)
                error[np.arange(len(digits)), digits] -= 1
                weights -= 0.5 * pictures.T @ error / len(digits)
                bias -= 0.5 * error.mean(axis=0)
        right = 0
        for numbers in np.array_split(np.arange(TRAINING, 1797), 360 // BATCH + 1):
            pictures, digits = records.batch(numbers)
            right += int((probabilities(pictures, weights, bias).argmax(axis=1) == digits).sum())
    seconds = time.perf_counter() - began
    print(
        f"{EPOCHS} epochs of {TRAINING} records in {seconds:.1f} s, {right} of 360 unseen digits read right:",
        end=" ",
    )
    print(f"accuracy {100 * right / 360:.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
