"""kubectl as a test uses it: objects in, objects and messages out, waiting with deadlines."""

import json
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

Body = dict[str, Any]
_T = TypeVar("_T")

DEADLINE = 30.0


class Refused(AssertionError):
    """kubectl failed. The text is what the user would see."""


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """Run kubectl and return what it prints. Raises Refused with its error output."""
    done = subprocess.run(
        ["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise Refused(done.stderr)
    return done.stdout


def apply(*bodies: Body, dry_run: bool = False) -> None:
    """`kubectl apply` of the objects. Raises Refused."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(bodies)})
    kubectl("apply", "-f", "-", *(["--dry-run=server"] if dry_run else []), stdin=text)


def create(body: Body) -> tuple[Body, str]:
    """Create as a server-side dry run: the object as it would be, and the warnings that the user sees."""
    done = subprocess.run(
        ["kubectl", "create", "--dry-run=server", "-o", "json", "-f", "-"],
        input=json.dumps(body),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        raise Refused(done.stderr)
    made: Body = json.loads(done.stdout)
    return made, done.stderr


def get(kind: str, name: str, namespace: str | None = None) -> Body | None:
    """The object, or None when it does not exist."""
    where = ["-n", namespace] if namespace else []
    text = kubectl("get", kind, name, *where, "-o", "json", "--ignore-not-found")
    return json.loads(text) if text else None


def set_status(kind: str, name: str, status: Body) -> None:
    """Write a status, as the program that owns it would."""
    kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": status}))


def condition(body: Body | None, kind: str) -> Body:
    """The condition of that type; empty when there is none."""
    conditions = (body or {}).get("status", {}).get("conditions", [])
    return next((c for c in conditions if c["type"] == kind), {})


def eventually(look: Callable[[], _T], holds: Callable[[_T], object], deadline: float = DEADLINE) -> _T:
    """Look until it holds; fails with the last sight after the deadline."""
    end = time.monotonic() + deadline
    while True:
        seen = look()
        if holds(seen):
            return seen
        if time.monotonic() > end:
            raise AssertionError(
                f"not within {deadline:.0f} s; last seen: {json.dumps(seen, default=str)[:3000]}"
            )
        time.sleep(0.1)
