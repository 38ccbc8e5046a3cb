"""What several commands need."""

import argparse
import re
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 -- it has no other name


def add_command(commands: "Commands", name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    """A command with its help."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog="examples:\n" + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def find_usrbiod() -> str:
    """Path of the daemon: the one that came with this package, or the one on the PATH.

    Raises:
        FileNotFoundError: there is none.
    """
    beside = Path(sysconfig.get_path("scripts")) / "usrbiod"
    found = str(beside) if beside.exists() else shutil.which("usrbiod")
    if found is None:
        raise FileNotFoundError(
            f"there is no usrbiod, neither at {beside} nor on the PATH: install the wheel, which has it"
        )
    return found


def mount_points() -> list[str]:
    """Mount points of type fuse.hf3fs, as this process sees them."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        # After the variable number of optional fields: a hyphen, type, source, options.
        if fields[fields.index("-") + 1] == "fuse.hf3fs":
            points.append(_unescaped(fields[4]))
    return points


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def human(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def byte_count(text: str) -> int:
    """A size on the command line, such as 4096, 4K or 1M.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    match = re.fullmatch(r"(\d+)([KMG]?)(iB|B)?", text, re.IGNORECASE)
    count = int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2].upper()] if match else 0
    if count < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no size: give bytes, such as 4096, 4K or 1M")
    return count


def positive(text: str) -> int:
    """A count on the command line.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return int(text)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [other.rjust(width) for other, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
