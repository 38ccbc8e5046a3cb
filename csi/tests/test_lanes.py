"""Calls that may never return: nobody else waits for them, and nothing of them is left."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from csikit.waiting import eventually

from kube3fs_csi.node.lanes import Lane, Lanes, Stuck
from kube3fs_csi.serving.errors import Busy, Unavailable


@pytest.fixture
def disk() -> Iterator[threading.Event]:
    """Answers when it is set."""
    answers = threading.Event()
    yield answers
    answers.set()


async def test_a_lane_waits_for_no_other(disk: threading.Event) -> None:
    """However many calls are stuck in one lane, those of the others go on; nor of another purpose."""
    lanes = Lanes(call_seconds=20)
    stuck = [
        asyncio.create_task(lanes.of("ns/bad", "call").run(f"volume {number}", disk.wait))
        for number in range(50)
    ]
    await asyncio.sleep(0)
    assert await lanes.of("ns/good", "call").run("volume 1", lambda: "good") == "good"
    assert await lanes.of("ns/bad", "unmount").run("volume 1", lambda: "gone") == "gone"
    disk.set()
    assert all(await asyncio.gather(*stuck))


async def test_a_call_that_is_stuck_is_told_so_and_not_repeated(disk: threading.Event) -> None:
    """After the deadline: what hangs, and since when. Until it ends, the same is not done twice."""
    lane, late = Lane("the storage of ns/bad", 1, call_seconds=0.05), []

    def work() -> str:
        disk.wait()
        return "made"

    with pytest.raises(Stuck, match=r"storage of ns/bad has not answered .* volume v1"):
        await lane.run("volume v1", work, discard=late.append)
    with pytest.raises(Busy, match="volume v1"):
        await lane.run("volume v1", lambda: "again")
    disk.set()
    await eventually(lambda: late == ["made"])
    assert await lane.run("volume v1", lambda: "again") == "again"


async def test_what_never_began_never_begins(disk: threading.Event) -> None:
    """A call that gave up while it waited for a thread is not made later, when nobody knows of it."""
    lane, done = Lane("a disk", 1, call_seconds=0.05), []
    first = asyncio.create_task(lane.run("first", disk.wait, seconds=20))
    await asyncio.sleep(0)
    with pytest.raises(Stuck):
        await lane.run("second", lambda: done.append("second"))
    disk.set()
    await first
    await lane.run("third", lambda: done.append("third"), seconds=20)
    assert done == ["third"]


async def test_a_lane_is_bounded(disk: threading.Event) -> None:
    """No more threads than it has, no more calls that wait than it takes: the next is refused at once."""
    before = threading.active_count()
    lane = Lane("a disk", 2, call_seconds=20, most_waiting=3)
    stuck = [asyncio.create_task(lane.run(f"call {number}", disk.wait)) for number in range(5)]
    await asyncio.sleep(0)
    await eventually(lambda: len(lane._waiting) == 3)
    with pytest.raises(Unavailable, match="3 calls wait"):
        await lane.run("one more", disk.wait)
    assert threading.active_count() - before <= 2
    disk.set()
    await asyncio.gather(*stuck)
    await eventually(lambda: threading.active_count() <= before)


async def test_a_cancelled_call_keeps_nothing(disk: threading.Event) -> None:
    """The result of a call whose caller is gone is thrown away, not lost."""
    lane, late = Lane("a disk", 1), []
    call = asyncio.create_task(lane.run("an fd", disk.wait, discard=late.append))
    await eventually(lambda: lane._running == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    disk.set()
    await eventually(lambda: late == [True])


async def test_errors_come_through() -> None:
    """Also a TimeoutError of the work itself, which is not the lane's."""

    def fails() -> None:
        raise TimeoutError("the disk's own")

    start = time.monotonic()
    with pytest.raises(TimeoutError, match="the disk's own"):
        await Lane("a disk", 1, call_seconds=20).run("a call", fails)
    assert time.monotonic() - start < 10


async def test_a_thread_that_cannot_be_started_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is tried again with the next call, which finds nothing of the first."""
    lane, start = Lane("a disk", 1, call_seconds=20), threading.Thread.start

    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(Unavailable, match="no thread can be started for a disk"):
        await lane.run("volume v1", lambda: "made")
    monkeypatch.setattr(threading.Thread, "start", start)
    assert await lane.run("volume v1", lambda: "made") == "made"
