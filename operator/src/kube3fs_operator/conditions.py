"""metav1 conditions: drafts, and how they settle against what the object already says. Pure."""

import datetime
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from kube3fs_crds import Condition

Truth = Literal["True", "False", "Unknown"]


class Draft(NamedTuple):
    """A condition before it is compared with the last one."""

    type: str
    status: Truth
    reason: str
    message: str


def truth(value: bool) -> Truth:
    """As conditions write it."""
    return "True" if value else "False"


def settle(
    drafts: Iterable[Draft], before: Sequence[Condition], generation: int, now: datetime.datetime
) -> list[Condition]:
    """Conditions for the status. The time of a condition whose status did not change stays."""
    old = {condition.type: condition for condition in before}
    return [
        Condition(
            type=draft.type,
            status=draft.status,
            observed_generation=generation,
            last_transition_time=(
                old[draft.type].last_transition_time
                if draft.type in old and old[draft.type].status == draft.status
                else now
            ),
            reason=draft.reason,
            message=draft.message,
        )
        for draft in drafts
    ]


def some(items: Sequence[str], limit: int = 5, separator: str = "; ") -> str:
    """The first few, and how many more there are."""
    shown = separator.join(items[:limit])
    return shown if len(items) <= limit else f"{shown}{separator}and {len(items) - limit} more"


def count(number: int, thing: str) -> str:
    """For example `1 volume`, `2 volumes`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
