"""The command `usrbio`."""

import argparse
import sys
from collections.abc import Sequence

from usrbio.cli import bench, check, cp, ls, serve

_EXAMPLES = """examples:
  sudo usrbio serve /srv/data /mnt/data     serve a directory as a USRBIO mount, until Ctrl-C
  usrbio check /mnt/data                    what works here, what does not, and what to do
  usrbio bench /mnt/data                    how much faster rings are than os.preadv
  usrbio cp -r /mnt/data/set /scratch       copy through rings
  usrbio ls                                 sessions, rings and Iovs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `| head` has seen enough; what is still buffered would be one more broken pipe.
        sys.stdout = None
        return 1
    except (OSError, ValueError) as error:
        print(f"usrbio: {_sentence(error)}", file=sys.stderr)
        return 1


def _sentence(error: Exception) -> str:
    """An error without its number, and with the file that it is about."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="usrbio",
        description="File I/O through 3FS's USRBIO rings.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, check, bench, cp, ls):
        command.add_to(commands)
    return parser
