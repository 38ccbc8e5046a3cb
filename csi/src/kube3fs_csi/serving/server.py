"""gRPC servers on unix sockets."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from kube3fs_csi.serving.interceptor import CallInterceptor

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
"""How long calls that run may go on after the server was told to stop."""

Register = Callable[[grpc.aio.Server], None]


@asynccontextmanager
async def serving(path: Path, *services: Register) -> AsyncIterator[grpc.aio.Server]:
    """Serves `services` at the socket `path`, mode 0600, which replaces a dead one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_socket():
        path.unlink()
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    for register in services:
        register(server)
    server.add_insecure_port(f"unix://{path}")
    await server.start()
    path.chmod(0o600)
    own = path.stat().st_ino
    log.info("serving at %s", path)
    try:
        yield server
    finally:
        await server.stop(GRACE_SECONDS)
        await asyncio.to_thread(_unlink_own, path, own)


def _unlink_own(path: Path, inode: int) -> None:
    """Removes the socket, unless a successor has put its own there."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass


def is_listening(path: Path) -> bool:
    """Whether somebody accepts connections at the stream socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
