"""Waits for conditions, with a deadline."""

import asyncio
import time
from collections.abc import Callable

DEADLINE_SECONDS = 20.0


def wait_until(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """Returns when `condition` holds; fails the test after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} does not hold after {seconds} s"
        time.sleep(0.01)


async def eventually(condition: Callable[[], object], seconds: float = DEADLINE_SECONDS) -> None:
    """The same, with an event loop that goes on."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{condition} does not hold after {seconds} s"
        await asyncio.sleep(0.01)
