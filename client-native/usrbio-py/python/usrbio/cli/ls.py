"""`usrbio ls`: sessions, rings and Iovs."""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from usrbio.cli._common import add_command, find_usrbiod, human, mount_points, table

if TYPE_CHECKING:
    from usrbio.cli._common import Commands

_EXAMPLES = """  usrbio ls                your rings and Iovs on every mount
  sudo usrbio ls           the daemons' sessions as well
  usrbio ls --json
"""

# Where daemons that `serve` started listen, for root only.
_SOCKETS = ("usrbiod.*/control", "usrbiod/control.sock")

# uuid, then parts that begin with a letter; r and w make it a ring.
_NAME = re.compile(r"(?P<id>[0-9a-f-]{36})(?P<parts>(\.[a-z0-9-]+)*)", re.IGNORECASE)


def add_to(commands: "Commands") -> None:
    """Adds the command."""
    parser = add_command(commands, "ls", "list sessions (as root), and your rings and Iovs", _EXAMPLES)
    parser.add_argument(
        "--socket",
        action="append",
        metavar="PATH",
        help="control socket of a daemon (default: those in /run)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Lists them."""
    sessions = _sessions(args.socket)
    objects = [found for point in mount_points() for found in _objects(point)]
    if args.json:
        print(json.dumps({"sessions": sessions, "objects": objects}, indent=2))
    else:
        print(_report(sessions, objects))
    return 0


def parse_name(name: str) -> dict[str, Any] | None:
    """What a name in ``3fs-virt/iovs`` says, or None for the daemon's own."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    parts = {part[0]: part[1:] for part in match["parts"].split(".") if part}
    kind = "read ring" if "r" in parts else "write ring" if "w" in parts else "Iov"
    return {"id": match["id"], "kind": kind, "name": name}


def _objects(point: str) -> list[dict[str, Any]]:
    """Rings and Iovs of this user on the mount at `point`. The daemon shows nobody else's.

    A mount that does not answer, since its daemon is gone, is named, and costs no other.
    """
    try:
        names = sorted(path.name for path in Path(point, "3fs-virt/iovs").iterdir())
    except OSError as error:
        print(f"usrbio: {point} is left out: {error.strerror}", file=sys.stderr)
        return []
    parsed = map(parse_name, names)
    return [{"mount": point, **found} for found in parsed if found]


def _sessions(sockets: list[str] | None) -> list[dict[str, Any]]:
    if sockets is None:
        if os.geteuid() != 0:
            return []
        found = (str(path) for pattern in _SOCKETS for path in Path("/run").glob(pattern))
        sockets = [path for path in found if _somebody_listens(path)]
    usrbiod = find_usrbiod()
    sessions: list[dict[str, Any]] = []
    for path in sockets:
        listed = subprocess.run(
            [usrbiod, "list", "--json", "--socket", path],
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        if listed.returncode != 0:
            raise OSError(f"{path}: {listed.stderr.strip()}")
        sessions += ({"socket": path, **session} for session in json.loads(listed.stdout))
    return sessions


def _somebody_listens(path: str) -> bool:
    """Or else a daemon that is dead left it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(path) == 0


def _report(sessions: list[dict[str, Any]], objects: list[dict[str, Any]]) -> str:
    parts = []
    if sessions:
        rows = [["SESSION", "MOUNT POINT", "RINGS", "IOVS", "IOV MEMORY"]]
        rows += (
            [s["session"], s["mount_point"], str(s["rings"]), str(s["iovs"]), human(s["iov_bytes"])]
            for s in sessions
        )
        parts.append(table(rows))
    if objects:
        rows = [["MOUNT", "KIND", "ID"]]
        rows += ([o["mount"], o["kind"], o["id"]] for o in objects)
        parts.append(table(rows))
    else:
        parts.append("no rings and no Iovs of yours on any USRBIO mount")
    return "\n\n".join(parts)
