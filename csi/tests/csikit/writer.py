"""Stands for a pod with an open file: a process of its own, as peers of usrbiod must not hold files open."""

import subprocess
from pathlib import Path
from types import TracebackType

_SCRIPT = 'exec 3>"$1"; while read -r word; do printf %s "$word" >&3 && echo written; done'


class Writer:
    """A process that holds `path` open and writes the words it is told."""

    def __init__(self, path: Path) -> None:
        argv = ["sh", "-c", _SCRIPT, "sh", str(path)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def write(self, word: str) -> None:
        """Returns when `word` is written."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "written\n"

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
