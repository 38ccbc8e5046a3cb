"""Makes nosuid, nodev and noexec of a mount stay in pods.

Container runtimes mount a volume into a pod with flags of their own ("rw"), and by that drop those that it
had: mountOptions of a PersistentVolume would end at the node. The kernel refuses that for a mount that was
copied into a mount namespace of a less privileged user: there the flags are locked, and a runtime that is
refused keeps them. So the mount is copied in such a namespace, by a child, and takes the place of the first.

This file is also the child's program: it gets the mount point and a socket, and sends back an fd of the copy.
It is a process of its own, because a user namespace is not for one of many threads.
"""

import ctypes
import errno
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

log = logging.getLogger(__name__)

_CLONE_NEWUSER, _CLONE_NEWNS = 0x1000_0000, 0x0002_0000
_AT_FDCWD, _OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = -100, 1, 4
_OPEN_TREE, _MOVE_MOUNT = 428, 429  # the same on every architecture
_SECONDS = 10


def locked_copy(mount_point: Path) -> int | None:
    """An fd of a copy of the mount, in no namespace yet, whose flags nobody can take away.

    None where the node has no user namespaces: the flags hold on the node alone then.
    """
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            argv = [sys.executable, "-I", "-S", __file__, str(mount_point), str(theirs.fileno())]
            try:
                done = subprocess.run(
                    argv,
                    pass_fds=[theirs.fileno()],
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired as error:  # a busy node: the kubelet asks again
                code = errno.ETIMEDOUT
                raise OSError(code, os.strerror(code), str(mount_point)) from error
        _data, fds, _flags, _address = socket.recv_fds(ours, 1, 1)
    if fds:
        os.set_inheritable(fds[0], False)
        return fds[0]
    words = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    log.warning("nosuid, nodev and noexec of %s may be lost inside the pod: %s", mount_point, words[-1])
    return None


def put(copy: int, mount_point: Path) -> None:
    """Mounts a copy."""
    _call("move_mount", _MOVE_MOUNT, copy, b"", _AT_FDCWD, os.fsencode(mount_point), _MOVE_MOUNT_F_EMPTY_PATH)


def _call(name: str, number: int, *arguments: int | bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def _child(mount_point: str, fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "unshare")
    copy = _call(
        "open_tree", _OPEN_TREE, _AT_FDCWD, os.fsencode(mount_point), _OPEN_TREE_CLONE | os.O_CLOEXEC
    )
    with socket.socket(fileno=fd) as parent:
        socket.send_fds(parent, [b"x"], [copy])


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]))
