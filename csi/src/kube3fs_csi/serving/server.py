"""gRPC servers on unix sockets."""

import logging
import os
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
    """Serves `services` at the socket `path`, mode 0600, in the place of whoever served there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    server = grpc.aio.server(interceptors=[CallInterceptor()])
    for register in services:
        register(server)
    # gRPC removes the path that it bound when it stops, whoever serves there by then: give it one of its own.
    bound = path.with_name(f".{path.stem}.{os.getpid()}")
    bound.unlink(missing_ok=True)
    server.add_insecure_port(f"unix://{bound}")
    await server.start()
    bound.chmod(0o600)
    bound.replace(path)
    own = inode(path)
    log.info("serving at %s", path)
    try:
        yield server
    finally:
        await server.stop(GRACE_SECONDS)
        if inode(path) == own:  # and not a successor's
            path.unlink(missing_ok=True)


def inode(path: Path) -> int:
    """The inode of `path`, 0 if there is none: another one means that somebody else serves there now."""
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return 0


def is_listening(path: Path) -> bool:
    """Whether somebody accepts connections at the stream socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
