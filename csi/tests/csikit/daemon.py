"""The real usrbiod for tests: started, killed, started again on the same state."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from csikit.waiting import wait_until

REPOSITORY = Path(__file__).parents[3]


def binary() -> Path:
    """The daemon: $USRBIOD, or what `cargo build` made in this repository."""
    built = [REPOSITORY / "client-native/target" / profile / "usrbiod" for profile in ("debug", "release")]
    candidates = [Path(os.environ["USRBIOD"])] if "USRBIOD" in os.environ else built
    for candidate in candidates:
        if candidate.exists():
            return candidate
    pytest.fail("no usrbiod; run `cargo build -p usrbiod` in client-native, or set USRBIOD to one")


class Daemon:
    """A usrbiod process with a control socket and a state directory below `folder`."""

    def __init__(self, folder: Path, name: str = "usrbiod") -> None:
        self.socket = folder / f"{name}.sock"
        self._state = folder / "usrbiod"
        self.log = folder / "usrbiod.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and returns when it answers at the socket."""
        argv = [str(binary()), "daemon", "--socket", str(self.socket), "--state-dir", str(self._state)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stderr=log)
        wait_until(self._is_listening)

    def kill(self) -> None:
        """Kills it with SIGKILL and reaps it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def has_ended(self) -> bool:
        """Whether somebody else has ended it."""
        return self._process is not None and self._process.poll() is not None

    def state_files(self) -> list[str]:
        """Names of the state files of sessions."""
        return sorted(path.name for path in self._state.iterdir() if path.name.endswith(".state"))

    def spoil(self, session: str) -> None:
        """Makes the state of a session one that this version cannot take over."""
        (self._state / f"{session}.state").write_bytes(b"of another version")

    def _is_listening(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(str(self.socket)) == 0
