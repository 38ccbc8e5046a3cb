"""Runs the programs that know file systems better than we do."""

import logging
import subprocess

from kube3fs_csi.serving.errors import CsiError
from kube3fs_csi.serving.machine import code_of

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0


class CommandFailed(CsiError):
    """A program ended with an error, or not at all. Its last words decide about the code."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code_of(sentence).code


def run(*argv: str, timeout: float = TIMEOUT_SECONDS) -> str:
    """What `argv` wrote to stdout; CommandFailed with its last words otherwise."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, check=False, env=C_LOCALE
        )
    except FileNotFoundError as error:
        raise CommandFailed(f"{argv[0]} is not installed beside the node plugin") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"{argv[0]} did not end within {timeout:.0f} s") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise CommandFailed(f"{' '.join(argv[:3])} failed: {words[-1]}")
    return done.stdout


C_LOCALE = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
