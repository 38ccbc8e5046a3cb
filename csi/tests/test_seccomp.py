"""What a broken usrbiod cannot do, tried under its seccomp profile; and that a sound one works there."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from csikit import confined
from csikit.daemon import binary
from csikit.waiting import eventually
from test_node import Node, in_thread

from kube3fs_csi.node import mounts
from kube3fs_csi.node.sessions import Health
from kube3fs_csi.seccomp import profile

ATTACKS = """
import ctypes, errno, os, socket, resource, sys
libc, libseccomp = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2")
def system_call(name, *arguments):
    call(libc.syscall, libseccomp.seccomp_syscall_resolve_name(name), *arguments)
def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")
victim, folder = int(sys.argv[1]), sys.argv[2]
here = os.open(folder, os.O_RDONLY)
attacks = {
    "kill another process": lambda: os.kill(victim, 9),
    "kill it by a thread": lambda: system_call(b"tgkill", victim, victim, 9),
    "kill it by its pidfd": lambda: system_call(b"pidfd_send_signal", os.pidfd_open(victim), 9, 0, 0),
    "take its fds": lambda: system_call(b"pidfd_getfd", os.pidfd_open(victim), 0, 0),
    "read its memory": lambda: system_call(b"process_vm_readv", victim, 0, 0, 0, 0, 0),
    "trace it": lambda: call(libc.ptrace, 16, victim, 0, 0),
    "take its files away": lambda: resource.prlimit(victim, resource.RLIMIT_NOFILE, (0, 0)),
    "pin it to a CPU": lambda: os.sched_setaffinity(victim, {0}),
    "freeze the file system": lambda: call(libc.ioctl, here, 0xC0045877, 0),
    "set a project": lambda: call(libc.ioctl, here, 0x401C5820, ctypes.create_string_buffer(28)),
    "delete a subvolume": lambda: call(libc.ioctl, here, 0x5000940F, ctypes.create_string_buffer(4096)),
    "mount": lambda: call(libc.mount, b"x", folder.encode(), b"tmpfs", 0, None),
    "unmount": lambda: call(libc.umount2, folder.encode(), 2),
    "clone a mount": lambda: system_call(b"open_tree", -100, folder.encode(), 1),
    "change its root": lambda: os.chroot(folder),
    "make a namespace": lambda: call(libc.unshare, 0x00020000),
    "enter one": lambda: call(libc.setns, here, 0),
    "make a device": lambda: os.mknod(folder + "/device", 0o060600, os.makedev(8, 0)),
    "make another": lambda: os.mknod(folder + "/device", 0o020600, os.makedev(1, 1)),
    "talk to the kernel": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "send packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "load a program into the kernel": lambda: system_call(b"bpf", 0, 0, 0),
    "load a module": lambda: system_call(b"finit_module", here, b"", 0),
    "watch files": lambda: call(libc.inotify_init1, 0),
    "read the kernel's log": lambda: call(libc.klogctl, 3, ctypes.create_string_buffer(10), 10),
    "stop the machine": lambda: system_call(b"reboot", 0, 0, 0, 0),
}
for name, attack in attacks.items():
    try:
        attack()
    except OSError as error:
        if error.errno == errno.EPERM:
            continue
        name += f" ({errno.errorcode.get(error.errno)})"
    print(name)
os.mkfifo(folder + "/fifo")
socket.socket(socket.AF_UNIX)
"""


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    path = tmp_path / "usrbiod.json"
    path.write_text(json.dumps(profile()))
    return path


def test_attacks_are_refused(tmp_path: Path, profile_file: Path) -> None:
    """As root, with every capability: by the profile alone. What the daemon needs is not."""
    script = tmp_path / "attacks.py"
    script.write_text(ATTACKS)
    with subprocess.Popen(["sleep", "60"]) as victim:
        try:
            argv = [sys.executable, str(confined.__file__), str(profile_file), sys.executable, str(script)]
            done = subprocess.run(
                [*argv, str(victim.pid), str(tmp_path)], capture_output=True, text=True, check=False
            )
            assert victim.poll() is None
        finally:
            victim.kill()
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


@pytest.fixture
async def confined_node(
    tmp_path: Path, profile_file: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Node]:
    """A node whose usrbiod is under its profile."""
    wrapper = tmp_path / "usrbiod-confined"
    wrapper.write_text(
        f'#!/bin/sh\nexec {sys.executable} {confined.__file__} {profile_file} {binary()} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("USRBIOD", str(wrapper))
    node = Node(tmp_path)
    node.daemon.start()
    yield node
    node.daemon.kill()
    for path in reversed(node.mounted()):
        mounts.unmount(path)


async def test_usrbiod_does_its_work_under_its_profile(confined_node: Node) -> None:
    """Reads, writes, all kinds of files, attributes, locks; and a successor that takes the mount over."""
    node, want = confined_node, confined_node.want("pod-a", "v1")

    def work() -> None:
        target = want.target
        (target / "folder").mkdir()
        (target / "file").write_bytes(bytes(1 << 20))
        (target / "file").chmod(0o640)
        os.chown(target / "file", 1000, 1000)
        os.setxattr(target / "file", "user.color", b"red")
        assert os.getxattr(target / "file", "user.color") == b"red"
        os.link(target / "file", target / "link")
        (target / "symlink").symlink_to("file")
        os.mkfifo(target / "fifo")
        (target / "file").rename(target / "folder/file")
        with (target / "folder/file").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 2 << 20)
            os.lockf(file.fileno(), os.F_LOCK, 10)
            os.fsync(file.fileno())
            file.truncate(10)
        os.utime(target / "folder/file", (1, 1))
        assert sorted(path.name for path in target.iterdir() if path.name != "3fs-virt") == [
            "fifo", "folder", "link", "symlink",
        ]  # fmt: skip
        (target / "link").unlink()
        assert os.statvfs(target).f_blocks

    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
        await in_thread(work)
        node.daemon.kill()
        node.daemon.start()
        await eventually(lambda: publisher.health(want) is Health.SERVED)
        assert await in_thread((want.target / "folder/file").read_bytes) == bytes(10)
        await publisher.unpublish("v1", want.target)
    assert "defect" not in node.daemon.log.read_text()
