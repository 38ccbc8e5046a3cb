"""Running other programs, and the one kind of error that a user sees."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

UNSHARE = (
    *("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"),
    *("--kill-child=KILL", "--propagation", "private"),
)
"""Run a command as the first process of new namespaces, which end with it."""


class ClusterError(Exception):
    """What went wrong and what to do about it, in one line."""


def say(message: str) -> None:
    """One line of progress, on stderr: stdout belongs to the command that runs in the cluster."""
    print(f"cluster: {message}", file=sys.stderr, flush=True)


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say what starts now, once a minute that it still runs, and how long it took."""
    say(f"{what} ...")
    start = time.monotonic()
    over = threading.Event()

    def alive() -> None:
        while not over.wait(60):
            say(f"{what}: {(time.monotonic() - start) / 60:.0f} min so far")

    threading.Thread(target=alive, daemon=True).start()
    try:
        yield
    finally:
        over.set()
    say(f"{what}: {time.monotonic() - start:.0f} s")


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    advice: str = "",
) -> str:
    """The stdout of `argv`. ClusterError, with the last line it printed, when it fails or takes too long.

    `env` adds to this process's environment; `advice` ends the error's sentence: what a user can do.
    """
    name = " ".join(str(a) for a in argv[:3])
    try:
        done = subprocess.run(
            argv,
            timeout=timeout,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            input=stdin,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:
        raise ClusterError(f"there is no program '{argv[0]}' here: install it, or run `make deps`") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"`{name}` took more than {timeout:.0f} s{tell(advice)}") from None
    if done.returncode:
        raise ClusterError(f"`{name}` failed: {last_line(done.stderr or done.stdout)}{tell(advice)}")
    return done.stdout


def last_line(text: str) -> str:
    """The last line that says something, at most 400 characters of it."""
    lines = [line for line in text.splitlines() if line.strip() and "dmesg(1)" not in line]
    return lines[-1].strip()[:400] if lines else "it printed nothing"


def tell(advice: str) -> str:
    return f"; {advice}" if advice else ""
