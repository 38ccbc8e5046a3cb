"""Conditions, whose time changes only with their status. Pure functions."""

import datetime
from collections.abc import Iterable

from kube3fs_crds import Condition


def condition(
    old: Iterable[Condition],
    kind: str,
    holds: bool | None,
    reason: str,
    message: str,
    generation: int | None,
    now: datetime.datetime,
) -> Condition:
    """The condition `kind` as it is now (None: unknown), with its old time if its status is what it was."""
    status = {True: "True", False: "False", None: "Unknown"}[holds]
    before = next((found for found in old if found.type == kind), None)
    unchanged = before is not None and before.status == status
    return Condition.model_validate(
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "observed_generation": generation,
            "last_transition_time": before.last_transition_time if before and unchanged else now,
        }
    )


def in_words(size: int) -> str:
    """Bytes for people, as Kubernetes writes quantities: 10Gi, 1.5Gi."""
    for power, unit in ((50, "Pi"), (40, "Ti"), (30, "Gi"), (20, "Mi"), (10, "Ki")):
        if size >= 1 << power:
            return f"{size / (1 << power):.1f}".removesuffix(".0") + unit
    return str(size)
