"""`usrbio serve`: the daemon on a directory of this machine."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from usrbio.cli._common import add_command, find_usrbiod

if TYPE_CHECKING:
    from usrbio.cli._common import Commands

_EXAMPLES = """  sudo usrbio serve /srv/data /mnt/data
  sudo usrbio serve /srv/data /mnt/data --read-only
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> NoReturn:
    """Becomes the daemon: signals and the exit status are its own."""
    usrbiod = find_usrbiod()
    if os.geteuid() == 0:  # or else the daemon says what is missing, and nothing was made
        for path in (args.dir, args.mountpoint):
            Path(path).mkdir(parents=True, exist_ok=True)
    command = ["usrbiod", "serve", args.dir, args.mountpoint]
    command += ["--read-only"] * args.read_only + ["--no-passthrough"] * args.no_passthrough
    os.execv(usrbiod, command)
