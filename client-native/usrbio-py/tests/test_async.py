"""Submitting without waiting, asyncio, and threads that share a ring."""

import asyncio
import errno
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import usrbio

BLOCK = 4096


def test_await_gives_what_wait_gives(mount, ring, file, content):
    """Many tasks await batches on one ring; each gets its own."""

    async def one(i: int, iov: usrbio.Iov) -> None:
        offset = i * 1000
        results = await ring.submit(file, offset, 100 + i, iov, i * BLOCK)
        assert list(results) == [100 + i]
        assert memoryview(iov)[i * BLOCK : i * BLOCK + 100 + i] == content[offset : offset + 100 + i]

    async def all_of_them() -> None:
        with usrbio.Iov(mount, 200 * BLOCK) as iov:
            await asyncio.gather(*(one(i, iov) for i in range(200)))

    asyncio.run(all_of_them())


def test_await_raises_what_wait_raises(mount_point, writer, iov, tmp_path):
    """A failed request fails the await."""

    async def fail() -> None:
        with usrbio.File(mount_point / f"{tmp_path.name}.big", "w") as file:
            await writer.submit(file, 2**63 - BLOCK, 100, iov)

    with pytest.raises(usrbio.RequestError) as caught:
        asyncio.run(fail())
    assert caught.value.errno == errno.EFBIG


def test_a_cancelled_await_leaves_the_batch_in_flight(ring, iov, file):
    """The batch can be waited for afterwards, and the loop stays usable."""

    async def cancel() -> usrbio.Batch:
        batch = ring.submit(file, [0] * 10, 10, iov)
        task = asyncio.ensure_future(_result(batch))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert list(await ring.submit(file, 0, 10, iov)) == [10]
        return batch

    assert list(asyncio.run(cancel()).wait(10)) == [10] * 10


async def _result(batch: usrbio.Batch) -> object:
    return await batch


def test_other_tasks_run_while_one_awaits(ring, iov, file):
    """The loop is never blocked by a batch."""
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0)

    async def main() -> None:
        beating = asyncio.ensure_future(beat())
        for _ in range(20):
            await ring.submit(file, [0] * 64, BLOCK, iov)
        beating.cancel()

    asyncio.run(main())
    assert beats > 20


def test_threads_share_a_ring(mount, path, content):
    """Threads read through one small ring at once, and nobody gets another's bytes."""
    with usrbio.Ring(mount, 8) as ring, usrbio.File(path) as file:

        def reads(seed: int) -> None:
            numbers = random.Random(seed)
            with usrbio.Iov(mount, 32 * 512) as iov:
                for _ in range(50):
                    offsets = [numbers.randrange(len(content) - 512) for _ in range(numbers.randint(1, 32))]
                    assert set(ring.read(file, offsets, 512, iov)) == {512}
                    for place, offset in enumerate(offsets):
                        assert memoryview(iov)[place * 512 :][:512] == content[offset : offset + 512]

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(reads, range(6)))


def test_the_gil_is_free_while_a_read_waits(ring, iov, file):
    """Another thread runs Python while one is inside a call; it sees calls in progress."""
    inside, seen, stop = threading.Event(), 0, False

    def look() -> None:
        nonlocal seen
        while not stop:
            seen += inside.is_set()

    thread = threading.Thread(target=look)
    thread.start()
    deadline = time.monotonic() + 30
    while seen == 0 and time.monotonic() < deadline:
        inside.set()
        ring.read(file, [0] * 64, BLOCK, iov)
        inside.clear()
    stop = True
    thread.join()
    assert seen > 0


def test_a_batch_in_flight_times_out_and_is_still_there(serve, stopped, tmp_path):
    """TimeoutError while the daemon does not answer; the same batch completes when it does."""
    with serve(tmp_path / "data", tmp_path / "mnt") as daemon:
        path = tmp_path / "mnt" / "f"
        path.write_bytes(b"content")
        mount = usrbio.Mount(path)
        with usrbio.Ring(mount, 4) as ring, usrbio.Iov(mount, 100) as iov, usrbio.File(path) as file:
            with stopped(daemon):
                batch = ring.submit(file, 0, 7, iov)
                assert not batch.done()
                with pytest.raises(TimeoutError, match="still in flight") as caught:
                    batch.wait(0.05)
                assert caught.value.errno == errno.ETIMEDOUT
            assert list(batch.wait(30)) == [7]
            assert bytes(memoryview(iov)[:7]) == b"content"
