"""Bad input: an exception of the documented type with a sentence, before anything is done."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import usrbio

BLOCK = 4096


@pytest.mark.parametrize(
    ("offsets", "lengths", "places", "error", "sentence"),
    [
        pytest.param([0, 1], [1], None, ValueError, "lengths has 1 elements for 2 offsets", id="lengths"),
        pytest.param(0, [1, 1], None, ValueError, "lengths has 2 elements for 1 offsets", id="one-offset"),
        pytest.param([0, 1], 1, [0], ValueError, "iov_offsets has 1 elements for 2", id="iov-offsets"),
        pytest.param([0, 1], 1, 0, ValueError, "iov_offsets has 1 elements for 2", id="one-iov-offset"),
        pytest.param([0, -1], 1, None, ValueError, r"offsets\[1\] is -1: it must not be neg", id="negative"),
        pytest.param(np.array([0, -5]), 1, None, ValueError, r"offsets\[1\] is -5", id="negative-array"),
        pytest.param(-1, 1, None, ValueError, "offsets is -1", id="negative-number"),
        pytest.param(0, -1, None, ValueError, "lengths is -1", id="negative-length"),
        pytest.param(-(2**70), 1, None, ValueError, "must not be negative", id="very-negative"),
        pytest.param([0], [0], None, ValueError, "request 0 is for 0 bytes", id="empty"),
        pytest.param([2**63 - 1], 1, None, OverflowError, "request 0 is for bytes", id="end-too-far"),
        pytest.param(
            [0, 2**63], 1, None, OverflowError, r"offsets\[1\] is 9223372036854775808", id="too-far"
        ),
        pytest.param(
            np.array([2**63], np.uint64), 1, None, OverflowError, r"offsets\[0\]", id="too-far-array"
        ),
        pytest.param([2**70], 1, None, OverflowError, "the largest is", id="huge"),
        pytest.param([0.5], 1, None, TypeError, r"offsets\[0\] is a float: give an integer", id="float"),
        pytest.param(np.zeros(2), 1, None, TypeError, "format 'd': give integers", id="float-array"),
        pytest.param(np.zeros((2, 2), int), 1, None, ValueError, "has 2 dimensions", id="matrix"),
        pytest.param(None, 1, None, TypeError, "offsets is a NoneType", id="none"),
        pytest.param("12", 1, None, TypeError, r"offsets\[0\] is a str", id="text"),
        pytest.param([0], [64 * BLOCK + 1], None, ValueError, "of an Iov of 262144 bytes", id="too-long"),
        pytest.param(
            [0], [2], [64 * BLOCK - 1], ValueError, "bytes 262143 to 262145 of an Iov", id="outside"
        ),
        pytest.param([0] * 65, BLOCK, None, ValueError, "request 64 .*iov_offsets is not given", id="packed"),
        pytest.param([0], [2**62], [2**62], ValueError, "give a larger Iov", id="overflow"),
    ],
)
def test_wrong_numbers_are_refused(offsets, lengths, places, error, sentence, ring, iov, file):
    """Nothing is read, the sentence names the argument, and the ring is as good as before."""
    memoryview(iov)[:1] = b"x"
    with pytest.raises(error, match=sentence):
        ring.read(file, offsets, lengths, iov, places)
    assert bytes(memoryview(iov)[:1]) == b"x"
    assert list(ring.read(file, 0, 1, iov)) == [1]


def test_what_is_no_file_or_iov_is_refused(ring, iov, file, path):
    """A path, an fd or a plain buffer is not taken for one."""
    with pytest.raises(TypeError, match="file is a str: give a usrbio"):
        ring.read(str(path), 0, 1, iov)
    with pytest.raises(TypeError, match="file is a int: give a usrbio"):
        ring.read([3], 0, 1, iov)
    with pytest.raises(ValueError, match="file has 1 elements for 2 offsets"):
        ring.read([file], [0, 1], 1, iov)
    with pytest.raises(TypeError, match="bytearray"):
        ring.read(file, 0, 1, bytearray(10))


def test_a_file_open_for_the_wrong_direction_is_refused(ring, writer, iov, path):
    """EACCES, as 3FS answers."""
    with (
        usrbio.File(path, "r") as reading,
        pytest.raises(PermissionError, match="open it for writing") as caught,
    ):
        writer.write(reading, 0, 1, iov)
    assert caught.value.errno == errno.EACCES
    with (
        usrbio.File(os.open(path, os.O_WRONLY)) as writing,
        pytest.raises(PermissionError, match="for reading"),
    ):
        ring.read(writing, 0, 1, iov)


def test_what_is_closed_is_refused(mount, path, content):
    """A closed ring, file or Iov raises ValueError, as Python's files do; closing twice is fine."""
    ring, iov, file = usrbio.Ring(mount, 4), usrbio.Iov(mount, BLOCK), usrbio.File(path)
    for what, name in ((file, "file"), (iov, "Iov"), (ring, "ring")):
        what.close()
        what.close()
        assert what.closed
        assert "closed" in repr(what)
        with pytest.raises(ValueError, match=f"the {name} is closed"):
            ring.read(file, 0, 1, iov) if name != "file" else ring.read(file, 0, 1, usrbio.Iov(mount, 1))
    for access in (lambda: len(iov), lambda: memoryview(iov), lambda: file.size):
        with pytest.raises(ValueError, match="is closed"):
            access()


def test_ring_iov_and_file_must_be_of_one_mount(elsewhere: Path, ring, iov, file):
    """A sentence says which one is not."""
    (elsewhere / "f").write_bytes(b"content")
    with (
        usrbio.File(elsewhere / "f") as other,
        pytest.raises(ValueError, match="the file is on another mount"),
    ):
        ring.read(other, 0, 1, iov)
    with (
        usrbio.Iov(usrbio.Mount(elsewhere), BLOCK) as other,
        pytest.raises(ValueError, match="the Iov belongs to"),
    ):
        ring.read(file, 0, 1, other)


def test_a_path_on_no_mount_is_refused(tmp_path: Path):
    """ENODEV with the path; a path that does not exist is FileNotFoundError."""
    (tmp_path / "f").write_bytes(b"")
    for make in (usrbio.Mount, usrbio.File):
        with pytest.raises(OSError, match=f"{tmp_path}/f is on no 3FS mount") as caught:
            make(tmp_path / "f")
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(FileNotFoundError):
            make(tmp_path / "missing")
    with pytest.raises(OSError, match="-1 is no fd"):
        usrbio.File(-1)
    with pytest.raises(ValueError, match="mode 'a': give one of r, r\\+"):
        usrbio.File(tmp_path / "f", "a")


def test_shared_memory_that_is_too_small_is_an_error_with_numbers(mount):
    """ENOSPC: what was asked for, what is free, and how to get more."""
    space = os.statvfs("/dev/shm")
    asked = space.f_blocks * space.f_frsize + (1 << 30)
    with pytest.raises(OSError, match=rf"^\[Errno 28\] {asked} bytes .* are free .*shm-size") as caught:
        usrbio.Iov(mount, asked)
    assert caught.value.errno == errno.ENOSPC


def test_sizes_that_cannot_be_are_refused(mount):
    """An Iov has bytes and a ring entries."""
    for size, error in ((0, ValueError), (-1, OverflowError), (1.5, TypeError)):
        with pytest.raises(error):
            usrbio.Iov(mount, size)
    for depth, error in ((0, ValueError), (-1, ValueError), (2**31, ValueError), (2**40, OverflowError)):
        with pytest.raises(error):
            usrbio.Ring(mount, depth)


def test_rings_and_iovs_do_not_pickle_but_errors_and_mounts_do(mount, ring, iov, writer, path):
    """What is of this process only says so; what a worker must send or receive can be sent."""
    for what in (ring, iov):
        with pytest.raises(TypeError, match="make one in the process that uses it"):
            pickle.dumps(what)
    assert pickle.loads(pickle.dumps(mount)).path == mount.path
    error = usrbio.RequestError(__import__("array").array("q", [1, -5]), 1)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_timeout_must_be_a_time(ring, iov, file):
    """Negative, infinite and wordy timeouts are refused."""
    batch = ring.submit(file, 0, 1, iov)
    for timeout in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="a timeout of"):
            batch.wait(timeout)
    with pytest.raises(TypeError):
        batch.wait("soon")
    assert list(batch.wait(10)) == [1]
