"""Client of usrbiod's control socket (client-native/usrbiod/CONTROL.md): JSON and fds over SOCK_SEQPACKET."""

import array
import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc

from kube3fs_csi.serving.errors import CsiError, Unavailable

_MAX_MESSAGE = 65536
_MAX_FDS = 253
GIVE_AT_ONCE = 200
"""How many fds one `give` may carry."""
_TIMEOUT_SECONDS = 10.0
_DRAIN_SECONDS = 35.0

Json = dict[str, Any]


_DEFECTS = frozenset(
    {"not-json", "unknown-op", "unknown-field", "invalid-field", "missing-fds", "too-many-fds", "too-large"}
)
"""Error codes of usrbiod that only a defect of ours brings about."""


class DaemonGone(Unavailable):
    """The daemon does not answer."""

    def __init__(self, socket_path: Path, why: object) -> None:
        super().__init__(f"usrbiod does not answer at {socket_path} ({why}); see its container's log; retry")


class DaemonError(CsiError):
    """The daemon refused a request. `kind` is its error code."""

    def __init__(self, op: str, kind: str, message: str) -> None:
        super().__init__(f"usrbiod refused {op}: {message}; its container's log says more")
        self.kind = kind
        self.code = grpc.StatusCode.INTERNAL if kind in _DEFECTS else grpc.StatusCode.UNAVAILABLE


class Message(NamedTuple):
    """What arrived: a JSON object, and fds that now belong to the receiver."""

    body: Json
    fds: list[int]

    def close(self) -> None:
        """Closes the fds."""
        for fd in self.fds:
            os.close(fd)


class Connection:
    """One connection to the daemon. Requests are sent one at a time, in the order of the calls."""

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self._path = path
        self._sock = sock
        self._turn = asyncio.Lock()

    @classmethod
    async def open(cls, path: Path) -> "Connection":
        """Connects, or raises DaemonGone."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(path))
        except OSError as error:
            sock.close()
            raise DaemonGone(path, error.strerror) from error
        return cls(path, sock)

    def close(self) -> None:
        """Hangs up."""
        self._sock.close()

    def end_daemon(self) -> bool:
        """Kills the daemon. False if its process is in a PID namespace that cannot be seen from here."""
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _uid, _gid = struct.unpack("3i", credentials)
        if pid == 0:  # to kill(2), that would be ourselves
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    async def kill_daemon(self) -> None:
        """Kills the daemon; returns when all its threads are gone, and so what they began in the kernel."""
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _uid, _gid = struct.unpack("3i", credentials)
        if pid == 0:
            raise DaemonGone(self._path, "its process cannot be seen from here: stop it")
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            ended = asyncio.Event()
            asyncio.get_running_loop().add_reader(pidfd, ended.set)
            try:
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await ended.wait()
            except TimeoutError as error:
                raise DaemonGone(self._path, "it was killed, and waits for its storage") from error
            finally:
                asyncio.get_running_loop().remove_reader(pidfd)
        finally:
            os.close(pidfd)

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def request(self, op: str, passed: Sequence[int] = (), /, **fields: object) -> Json:
        """The answer to a request that is answered by one message without fds. `passed` fds stay ours."""
        messages = await self.request_all(op, passed, **fields)
        for message in messages:
            message.close()
        return messages[-1].body

    async def request_all(self, op: str, passed: Sequence[int] = (), /, **fields: object) -> list[Message]:
        """All answers to a request. A connection that fails half way is of no use any more and is closed."""
        messages: list[Message] = []
        seconds = _DRAIN_SECONDS if op == "drain" else _TIMEOUT_SECONDS
        async with self._turn:
            try:
                async with asyncio.timeout(seconds):
                    await self._send({"op": op} | fields, passed)
                    while not messages or messages[-1].body.get("more"):
                        messages.append(await self.receive())
            except BaseException as error:
                self.close()
                for message in messages:
                    message.close()
                if isinstance(error, TimeoutError):
                    raise DaemonGone(self._path, f"no answer to {op} for {seconds:.0f} s") from error
                raise
        body = messages[-1].body
        if not body["ok"]:
            raise DaemonError(op, body["error"]["code"], body["error"]["message"])
        return messages

    async def receive(self) -> Message:
        """The next message, or DaemonGone at the end of the stream."""
        while True:
            try:
                data, fds = _receive(self._sock)
            except BlockingIOError:
                await self._ready(write=False)
                continue
            except OSError as error:
                raise DaemonGone(self._path, error.strerror) from error
            if not data:
                raise DaemonGone(self._path, "it hung up")
            return Message(json.loads(data), fds)

    async def _send(self, body: Json, fds: Iterable[int]) -> None:
        data = json.dumps(body, separators=(",", ":")).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        while True:
            try:
                self._sock.sendmsg([data], rights)
            except BlockingIOError:
                await self._ready(write=True)
                continue
            except OSError as error:
                raise DaemonGone(self._path, error.strerror) from error
            return

    async def _ready(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        fd, ready = self._sock.fileno(), asyncio.Event()
        add, remove = (
            (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
        )
        add(fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(fd)


def _receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """One message. Unlike socket.recv_fds, close-on-exec: a child must not keep a mount alive."""
    fds = array.array("i")
    room = socket.CMSG_SPACE(_MAX_FDS * fds.itemsize)
    data, ancillary, flags, _address = sock.recvmsg(_MAX_MESSAGE, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:  # the kernel passes as many as fit, and drops the others
        for fd in fds:
            os.close(fd)
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        raise OSError(errno.EMFILE, f"fds were lost: this process may have {limit} open, see RLIMIT_NOFILE")
    return data, list(fds)
