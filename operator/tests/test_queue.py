"""The work queue: no key twice at work, none lost, none starved."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from kube3fs_operator.queue import LAST_RETRY, WorkQueue


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def take(queue: WorkQueue[str]) -> str | None:
    """The next key, or None when there is none now."""
    waiting = asyncio.create_task(queue.take())
    for _ in range(3):
        await asyncio.sleep(0)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    return None


async def test_a_key_waits_once() -> None:
    """Many events for one object are one reconcile."""
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.add("a")
    assert await take(queue) == "a"
    assert await take(queue) is None


async def test_a_key_added_at_work_comes_again_afterwards() -> None:
    """What happened while an object was reconciled is looked at, but not by two workers at once."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await take(queue) == "a"
    queue.add("a")
    assert await take(queue) is None
    queue.done("a")
    assert await take(queue) == "a"


async def test_failures_come_back_later_and_later_up_to_a_limit() -> None:
    """Delays double, with some jitter, and stop growing; a success starts them anew."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    delays = []
    queue.add("a")
    for _ in range(12):
        assert await take(queue) == "a"
        delays.append(queue.failed("a"))
        clock.now += delays[-1]
    assert 0.4 <= delays[0] <= 0.6
    assert LAST_RETRY * 0.8 <= delays[-1] <= LAST_RETRY * 1.2
    assert await take(queue) == "a"
    queue.done("a")
    queue.add("a")
    await take(queue)
    assert queue.failed("a") < 1


async def test_what_fails_for_days_goes_on_to_come_back() -> None:
    """Its delay is the longest, however often it has failed."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a")
    for _ in range(2000):
        assert await take(queue) == "a"
        delay = queue.failed("a")
        clock.now += delay
    assert LAST_RETRY * 0.8 <= delay <= LAST_RETRY * 1.2


async def test_the_earliest_appointment_stands() -> None:
    """A later appointment does not move an earlier one, and each is kept once."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add_after("a", 10)
    queue.add_after("a", 600)
    clock.now = 9
    assert await take(queue) is None
    clock.now = 10
    assert await take(queue) == "a"
    queue.done("a")
    clock.now = 700
    assert await take(queue) is None


async def test_the_age_is_that_of_the_head_of_the_line() -> None:
    """/healthz and the metric see how long the oldest key has waited."""
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    assert queue.oldest_age() == 0
    queue.add("a")
    clock.now = 3
    queue.add("b")
    clock.now = 5
    assert queue.oldest_age() == 5


async def test_a_waiting_worker_wakes_up() -> None:
    """A key that arrives is taken by a worker that waits."""
    queue: WorkQueue[str] = WorkQueue()
    waiting = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    queue.add_after("a", 0.01)
    assert await asyncio.wait_for(waiting, 5) == "a"


@given(st.lists(st.tuples(st.sampled_from(["add", "take", "done", "fail"]), st.sampled_from("abc"))))
def test_no_key_is_lost_or_worked_twice(steps: list[tuple[str, str]]) -> None:
    """After any history every key that was added last is at work or comes out again."""

    async def play() -> None:
        clock = Clock()
        queue: WorkQueue[str] = WorkQueue(clock)
        working: set[str] = set()
        owed: set[str] = set()
        for what, key in steps:
            if what == "add":
                queue.add(key)
                owed.add(key)
            elif what == "take":
                taken = await take(queue)
                if taken is not None:
                    assert taken not in working
                    working.add(taken)
                    owed.discard(taken)
            elif key in working:
                working.discard(key)
                if what == "done":
                    queue.done(key)
                else:
                    queue.failed(key)
                    owed.add(key)
        for key in list(working):
            queue.done(key)
        clock.now += 1000
        left = set()
        while (key_left := await take(queue)) is not None:
            left.add(key_left)
            queue.done(key_left)
        assert owed <= left

    asyncio.run(play())
