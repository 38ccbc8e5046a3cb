"""Buffers as memoryview, NumPy array and DLPack tensor, without a copy."""

import numpy as np
import pytest

import usrbio

BLOCK = 4096


def test_a_memoryview_shows_what_the_daemon_wrote(ring, iov, file, content):
    """An Iov is a buffer of writable bytes."""
    view = memoryview(iov)
    assert (view.format, view.itemsize, view.shape, view.readonly) == ("B", 1, (len(iov),), False)
    ring.read(file, 0, len(iov), iov)
    assert view == content[: len(iov)]
    view[0] = (content[0] + 1) % 256
    assert bytes(iov)[0] == (content[0] + 1) % 256


def test_numpy_sees_records_without_a_copy(ring, iov, file, content):
    """An array made before a read shows what the read brought."""
    records = np.frombuffer(iov, np.dtype([("id", "<u4"), ("body", "V4092")]))
    ring.read(file, range(0, 64 * BLOCK, BLOCK), BLOCK, iov)
    assert records["id"].tolist() == np.frombuffer(content, "<u4")[: 64 * 1024 : 1024].tolist()


def test_dlpack_shares_the_memory(ring, iov, file, content):
    """A tensor of uint8, writable, with and without the version of DLPack 1.0."""
    tensor = np.from_dlpack(iov)
    assert (tensor.dtype, tensor.shape) == (np.uint8, (len(iov),))
    ring.read(file, 0, len(iov), iov)
    assert tensor.tobytes() == content[: len(iov)]
    assert iov.__dlpack_device__() == (1, 0)
    for version, name in ((None, "dltensor"), ((0, 8), "dltensor"), ((1, 0), "dltensor_versioned")):
        assert f'"{name}"' in repr(iov.__dlpack__(max_version=version))
    for wrong in ({"stream": 1}, {"dl_device": (2, 0)}, {"copy": True}):
        with pytest.raises(BufferError):
            iov.__dlpack__(**wrong)


def test_tensors_and_capsules_may_go_in_any_order(mount):
    """A consumed and an unconsumed capsule both give the memory back, once."""
    for _ in range(100):
        iov = usrbio.Iov(mount, BLOCK)
        capsule, tensor = iov.__dlpack__(), np.from_dlpack(iov)
        del iov, capsule
        assert tensor.sum() == 0
        del tensor
