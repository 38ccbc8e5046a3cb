"""The daemon, its mounts and the file that all contenders read."""

import os
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Server(NamedTuple):
    mount: Path
    supervisor: int

    def cpu_seconds(self) -> float:
        """Of the daemon, all its threads."""
        children = Path(f"/proc/{self.supervisor}/task/{self.supervisor}/children").read_text().split()
        ticks = 0
        for child in children:
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(directory: Path, mount: Path, *options: str) -> Iterator[Server]:
    """`usrbio serve` from the wheel; it ends with this process."""
    usrbio = Path(sysconfig.get_path("scripts")) / "usrbio"
    command = ["setpriv", "--pdeathsig", "TERM", str(usrbio), "serve", str(directory), str(mount), *options]
    environment = {"RUST_LOG": "error", **os.environ}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    if not process.stdout.readline():
        raise SystemExit("bench-python: the daemon does not start: its message is above")
    try:
        yield Server(mount, process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        process.stdout.close()


def data_file(path: Path, size: int) -> None:
    """A file whose every eight bytes are their own offset; it is in the page cache afterwards."""
    step = 16 << 20
    with path.open("wb") as file:
        for start in range(0, size, step):
            file.write(np.arange(start, min(start + step, size), 8, dtype=np.uint64).tobytes())
