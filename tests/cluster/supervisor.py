"""Starting programs, noticing that one ended, waiting for what they bring about."""

import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from tests.cluster.shell import ClusterError, last_line
from tests.cluster.spec import Spec


class Supervisor:
    """The programs of one namespace."""

    def __init__(self, spec: Spec, prefix: str = "") -> None:
        """`prefix` goes before the names of this supervisor's log files."""
        self._logs = logs(spec)
        self._prefix = prefix
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        # No proxy of the machine knows the cluster's network.
        self._env = {
            **os.environ,
            "PATH": f"{spec.bin}:{os.environ['PATH']}",
            "NO_PROXY": "*",
            "no_proxy": "*",
        }

    def start(self, argv: Sequence[str], name: str = "") -> subprocess.Popen[bytes]:
        """Start a program in the background, with a log file of its `name` (default: the program's)."""
        name = self._prefix + (name or argv[0])
        self._running[name] = self._spawn(name, argv)
        return self._running[name]

    def keep(self, argv: Sequence[str]) -> NoReturn:
        """Start a program that was started before again whenever it ends, as systemd does with a kubelet."""
        name = self._prefix + argv[0]
        while True:
            self._running[name].wait()
            time.sleep(1)  # one that ends at once does not take a whole CPU
            self._running[name] = self._spawn(name, argv)

    def _spawn(self, name: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                argv,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def adopt(self, name: str, process: subprocess.Popen[bytes]) -> None:
        """Watch a program that somebody else started and that writes the log `name`."""
        self._running[name] = process

    def check(self) -> None:
        """ClusterError when a program has ended."""
        for name, process in self._running.items():
            if process.poll() is not None:
                log = self._logs / f"{name}.log"
                said = last_line(log.read_text(errors="replace"))
                raise ClusterError(f"{name} ended with exit code {process.returncode}: {said}")

    def wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Return when `condition` holds. ClusterError after `seconds`, or when a program ended meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise ClusterError(f"{what} did not come up in {seconds:.0f} s: see the logs in {self._logs}")
            time.sleep(0.1)


def logs(spec: Spec) -> Path:
    """The folder of every program's log."""
    return spec.folder / "logs"


def as_init(work: Callable[[], None]) -> int:
    """The exit code of `work`, run in a child, while this process, pid 1 of its namespace, reaps orphans."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except ClusterError as error:
            print(error, file=sys.stderr)
        except BaseException:  # the last place that can tell
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)
