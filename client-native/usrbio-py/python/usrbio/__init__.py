"""Batched, zero-copy file I/O through 3FS's USRBIO rings.

A `Mount` is a mount of type ``fuse.hf3fs``: 3FS's own, or a directory that ``usrbio serve`` serves. An `Iov`
is a buffer in shared memory that the daemon reads and writes directly. A `Ring` takes whole arrays of
requests in one call. A `File` is a file of the mount that requests may name.

    import numpy as np
    import usrbio

    with (
        usrbio.Mount("/mnt/data") as mount,
        usrbio.Ring(mount, 128) as ring,
        usrbio.Iov(mount, 128 * 4096) as iov,
        usrbio.File("/mnt/data/train.bin") as file,
    ):
        offsets = np.random.randint(0, file.size // 4096, 128) * 4096
        ring.read(file, offsets, 4096, iov)  # 128 reads, one call, no GIL
        records = np.frombuffer(iov, np.uint8).reshape(128, 4096)  # no copy

Errors. A wrong argument is a `TypeError`, `ValueError` or `OverflowError`, and nothing of the batch is done.
What the system refuses is an `OSError` with its errno; among them:

    RequestError          some requests of a batch failed; it has the results of all
    PermissionError       EACCES: the file is not open for this direction
    io.UnsupportedOperation  a read on a ring for writes, or the other way round
    ChildProcessError     ECHILD: the ring was made before a fork; make rings in the process that uses them
    OSError ENODEV        the path is on no USRBIO mount
    OSError ENOSPC        shared memory is too small; the sentence says how much is free and how to get more
    OSError ENOTCONN      the daemon is gone
    OSError EIO           the daemon broke the ring's protocol; make the ring anew
    TimeoutError          the batch is still in flight

Fork and spawn. A ring belongs to the process that made it: make rings and Iovs in a DataLoader's worker, not
before.
"""

from usrbio._errors import RequestError
from usrbio._files import File, Mount
from usrbio._iov import Iov
from usrbio._ring import Batch, Ring

__all__ = ["Batch", "File", "Iov", "Mount", "RequestError", "Ring"]
