"""Batches through rings: what is read and written."""

import io
import os
from array import array
from pathlib import Path

import numpy as np
import pytest

import usrbio

BLOCK = 4096


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(list, id="list"),
        pytest.param(tuple, id="tuple"),
        pytest.param(lambda numbers: array("q", numbers), id="array"),
        pytest.param(lambda numbers: np.array(numbers, np.int64), id="int64"),
        pytest.param(lambda numbers: np.array(numbers, np.uint64), id="uint64"),
        pytest.param(lambda numbers: np.array(numbers, np.int32), id="int32"),
        pytest.param(lambda numbers: np.repeat(np.array(numbers), 2)[::2], id="strided"),
        pytest.param(iter, id="iterator"),
    ],
)
def test_any_array_of_integers_names_the_parts(make, ring, iov, file, content):
    """Offsets, lengths and places may be any sequence or buffer of integers."""
    offsets, lengths, places = [40960, 0, 12345], [4096, 1, 100], [8192, 0, 4096]
    results = ring.read(file, make(offsets), make(lengths), iov, make(places))
    assert list(results) == lengths
    assert isinstance(results, array)
    assert results.typecode == "q"
    memory = memoryview(iov)
    for offset, length, place in zip(offsets, lengths, places, strict=True):
        assert memory[place : place + length] == content[offset : offset + length]


def test_one_length_serves_all_and_parts_lie_one_after_another(ring, iov, file, content):
    """A length may be one number, and without iov_offsets the parts are packed."""
    assert list(ring.read(file, range(0, 8 * 100, 100), 10, iov)) == [10] * 8
    assert bytes(memoryview(iov)[:80]) == b"".join(content[at : at + 10] for at in range(0, 800, 100))
    assert list(ring.read(file, 7, 10, iov)) == [10]
    assert bytes(memoryview(iov)[:10]) == content[7:17]
    assert list(ring.read(file, [0, 5], [np.int64(3), 2], iov)) == [3, 2]
    assert list(ring.read(file, np.int64(0), np.uint8(3), iov)) == [3]


def test_a_batch_may_be_larger_than_the_ring(mount, path, content):
    """Requests that do not fit on the ring follow as others complete."""
    with usrbio.Ring(mount, 3) as ring, usrbio.Iov(mount, len(content)) as iov, usrbio.File(path) as file:
        results = ring.read(file, range(0, len(content), BLOCK), BLOCK, iov)
        assert set(results) == {BLOCK}
        assert bytes(iov) == content


def test_requests_of_one_batch_may_name_several_files(mount_point, ring, iov, path, content):
    """A file for each request instead of one for all."""
    other = mount_point / f"{path.name}.other"
    other.write_bytes(content[::-1])
    with usrbio.File(path) as one, usrbio.File(other) as two:
        ring.read([one, two, one], [0, 0, 10], 10, iov)
    assert bytes(memoryview(iov)[:30]) == content[:10] + content[::-1][:10] + content[10:20]


def test_a_read_ends_at_the_end_of_the_file(ring, iov, file, content):
    """Short and empty reads are results, not errors, and leave the rest of the Iov as it was."""
    memoryview(iov)[:200] = bytes(200)
    end = len(content)
    assert list(ring.read(file, [end - 10, end, end + 1000], [100, 50, 50], iov)) == [10, 0, 0]
    assert bytes(memoryview(iov)[:200]) == content[-10:] + bytes(190)


def test_no_requests_are_no_results(ring, iov, file):
    """An empty batch is complete at once."""
    assert list(ring.read(file, [], [], iov)) == []
    assert list(ring.submit(file, [], 1, iov).wait(0)) == []


def test_what_is_written_is_read(mount_point, mount, ring, writer, iov, tmp_path):
    """Parts of an Iov land where the offsets say, and a gap reads as zeros."""
    path = mount_point / f"{tmp_path.name}.out"
    data = os.urandom(3 * BLOCK)
    memoryview(iov)[: len(data)] = data
    with usrbio.File(path, "x+") as file:
        assert list(writer.write(file, [0, 8 * BLOCK], [BLOCK, 2 * BLOCK], iov)) == [BLOCK, 2 * BLOCK]
        file.sync()
        assert file.size == 10 * BLOCK
        assert list(ring.read(file, [8 * BLOCK], 2 * BLOCK, iov, 3 * BLOCK)) == [2 * BLOCK]
        assert bytes(memoryview(iov)[3 * BLOCK : 5 * BLOCK]) == data[BLOCK:]
    assert path.read_bytes() == data[:BLOCK] + bytes(7 * BLOCK) + data[BLOCK:]


@pytest.mark.parametrize("mode", ["r", "rb", "r+"])
def test_a_file_comes_from_a_path_an_fd_or_an_open_file(mode, ring, iov, path, content):
    """The source of a File stays the caller's and may be closed."""
    with path.open("rb") as opened:
        files = [usrbio.File(str(path), mode), usrbio.File(opened), usrbio.File(opened.fileno())]
    for file in files:
        with file:
            assert file.size == len(content)
            ring.read(file, 0, 10, iov)
            assert bytes(memoryview(iov)[:10]) == content[:10]
        assert file.closed


def test_batches_in_flight_together_keep_their_results_apart(ring, mount, file, content):
    """Several batches may be in flight; each is waited for by itself, in any order."""
    with usrbio.Iov(mount, 50 * BLOCK) as iov:
        batches = [ring.submit(file, [i * BLOCK], 100 + i, iov, [i * BLOCK]) for i in range(50)]
        for i in reversed(range(50)):
            assert list(batches[i].wait()) == [100 + i]
            assert batches[i].done()
        assert list(batches[7].wait()) == [107], "a second time"
        for i in range(50):
            at = i * BLOCK
            assert bytes(memoryview(iov)[at : at + 100 + i]) == content[at : at + 100 + i]


def test_a_failed_request_does_not_hide_the_others(mount_point, writer, iov, tmp_path):
    """RequestError has the results of all requests and the errno of the first that failed."""
    path = mount_point / f"{tmp_path.name}.big"
    with usrbio.File(path, "w") as file:
        too_far = 2**63 - BLOCK  # no file system has files as large
        with pytest.raises(usrbio.RequestError) as caught:
            writer.write(file, [0, too_far, 100], [10, 100, 10], iov)
        assert caught.value.index == 1
        assert caught.value.errno == -caught.value.results[1]
        assert list(caught.value.results[::2]) == [10, 10]
        assert "1 of 3 requests failed, the first one is request 1: " in str(caught.value)
        assert list(writer.write(file, [0], [10], iov)) == [10], "the ring is as good as before"


def test_a_ring_is_for_one_direction(ring, writer, iov, file):
    """The other direction is refused with a sentence, as by Python's own files."""
    with pytest.raises(io.UnsupportedOperation, match="make one with read=False"):
        ring.write(file, 0, 1, iov)
    with pytest.raises(io.UnsupportedOperation, match="make one with read=True"):
        writer.read(file, 0, 1, iov)


def test_a_file_of_a_read_only_mount_cannot_be_written(serve, tmp_path: Path):
    """EROFS, by the system itself."""
    with serve(tmp_path / "data", tmp_path / "mnt", "--read-only"):
        (tmp_path / "data" / "f").write_bytes(b"content")
        with pytest.raises(OSError, match="Read-only") as caught:
            usrbio.File(tmp_path / "mnt" / "f", "r+")
        assert caught.value.filename == str(tmp_path / "mnt" / "f")
