"""`usrbio serve`: the daemon on a directory of this machine."""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from usrbio.cli._common import add_command, find_usrbiod

if TYPE_CHECKING:
    from usrbio.cli._common import Commands

_EXAMPLES = """  sudo usrbio serve /srv/data /mnt/data
  sudo usrbio serve /srv/data /mnt/data --read-only
  sudo usrbio serve --detach /srv/data /mnt/data && usrbio bench /mnt/data; sudo umount /mnt/data
"""


def add_to(commands: "Commands") -> None:
    """Adds the command."""
    parser = add_command(
        commands, "serve", "serve a directory as a USRBIO mount, until Ctrl-C (as root)", _EXAMPLES
    )
    parser.add_argument("dir", metavar="DIR", help="the directory to serve; it is made if need be")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where to mount it; it is made if need be")
    parser.add_argument("--read-only", action="store_true", help="refuse every change")
    parser.add_argument(
        "--no-passthrough",
        action="store_true",
        help="do not let the kernel read and write the files by itself",
    )
    parser.add_argument(
        "--detach", action="store_true", help="come back when the mount is there; umount ends it"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serves until Ctrl-C, or until somebody unmounts."""
    usrbiod = find_usrbiod()
    if os.geteuid() == 0:  # or else the daemon says what is missing, and nothing was made
        for path in (args.dir, args.mountpoint):
            Path(path).mkdir(parents=True, exist_ok=True)
    command = [usrbiod, "serve", args.dir, args.mountpoint]
    command += ["--read-only"] * args.read_only + ["--no-passthrough"] * args.no_passthrough
    if not args.detach:
        # Becomes the daemon: signals and the exit status are its own.
        os.execv(usrbiod, command)  # noqa: S606 -- no shell is wanted
    return _detached(command, args.mountpoint)


def _detached(command: list[str], mountpoint: str) -> int:
    environment = {"RUST_LOG": "error", **os.environ}
    # Not our stderr: who reads that to its end would wait for the daemon's.
    with tempfile.TemporaryFile() as said:
        daemon = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
            start_new_session=True,
        )
        with daemon.stdout or contextlib.nullcontext() as ready:
            if not ready or not ready.readline():
                status = daemon.wait()
                said.seek(0)
                sys.stderr.write(said.read().decode(errors="replace"))
                return status
    print(f"serving {command[2]} at {mountpoint}; umount {mountpoint} ends it")
    # It goes on without us.
    daemon.returncode = 0
    return 0
