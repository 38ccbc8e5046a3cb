"""Points at which a test may kill the operator: before and after every write to the API server.

`KUBE3FS_EXIT_AT=after:finalizer` ends the process, without any clean-up, right after that write. Unset, which
is how the operator runs for users, nothing happens.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Step = Literal[
    "finalizer",
    "class",
    "class-delete",
    "volume-delete",
    "status",
    "event",
    "release",
    "node",
    "node-delete",
    "node-silent",
    "give-up",
    "taint",
]
STEPS: tuple[str, ...] = get_args(Step)
EXIT_STATUS = 86


class Faults:
    """The one point that was asked for, if any."""

    def __init__(self, point: str = "") -> None:
        moment, _, step = point.partition(":")
        if point and (moment not in ("before", "after") or step not in STEPS):
            raise ValueError(
                f"KUBE3FS_EXIT_AT={point}: write before:STEP or after:STEP with one of {', '.join(STEPS)}"
            )
        self._point = point

    @contextmanager
    def around(self, step: Step) -> Iterator[None]:
        """Wraps the write of that name."""
        self._maybe_exit(f"before:{step}")
        yield
        self._maybe_exit(f"after:{step}")

    def _maybe_exit(self, point: str) -> None:
        if point == self._point:
            os._exit(EXIT_STATUS)
