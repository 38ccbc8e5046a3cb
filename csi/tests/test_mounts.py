"""The mount table as the kernel writes it, and mounts that come and go."""

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kube3fs_csi.node import mounts
from kube3fs_csi.node.publisher import clear_target
from kube3fs_csi.node.shm import SharedMemory

LINE = (
    r"36 35 98:0 /mnt1 /mnt\0402/a rw,noatime master:1 - fuse.hf3fs kube3fs rw,errors=continue"
    "\n"
    r"37 35 0:44 / /other ro - tmpfs kube3fs-client ro,size=4k"
)


def test_a_line_is_parsed() -> None:
    """Fields, optional fields and escapes are those of proc_pid_mountinfo(5)."""
    one, other = mounts.parse_mountinfo(LINE)
    assert (one.path, one.root, one.fstype, one.source) == (
        Path("/mnt 2/a"),
        "/mnt1",
        "fuse.hf3fs",
        "kube3fs",
    )
    assert "noatime" in one.options
    assert "ro" in other.super_options


def test_mounts_are_found_by_their_path(tmp_path: Path) -> None:
    """Stacked mounts are found together, at paths with odd characters too, and unmounted together."""
    target = tmp_path / "a b\\c"
    target.mkdir()
    assert mounts.mounts_at(target) == []
    for _ in range(2):
        subprocess.run(["mount", "-t", "tmpfs", "kube3fs-test", str(target)], check=True)
    assert [mount.source for mount in mounts.mounts_at(target)] == ["kube3fs-test"] * 2
    assert mounts.mount_of(target).fstype == "tmpfs"
    mounts.unmount(target)
    assert mounts.mounts_at(target) == []


def test_the_device_of_a_mount_is_found_for_kernels_that_do_not_tell_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon finds its mount in the tables of clients by it."""
    fuse = mounts.mount_fuse(tmp_path)
    try:
        monkeypatch.setattr(mounts, "_KERNEL_TELLS_DEVICE", False)
        assert f"0:{mounts.fuse_devices()[tmp_path]}" == mounts.mounts_at(tmp_path)[-1].device
        assert tmp_path.parent not in mounts.fuse_devices()
        monkeypatch.setattr(mounts, "_KERNEL_TELLS_DEVICE", True)
        assert mounts.fuse_devices() == {}
    finally:
        mounts.unmount(tmp_path)
        os.close(fuse)


@pytest.mark.parametrize("name", ["folder", "file", "missing", "missing/below", "file/below"])
def test_unmounting_where_nothing_is_mounted_is_success(tmp_path: Path, name: str) -> None:
    """Whatever is there, or is not."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    mounts.unmount(tmp_path / name)


def test_what_a_link_leads_to_stays_mounted(tmp_path: Path) -> None:
    """A target that is a link, or is below one, is nothing that we mounted at."""
    real = tmp_path / "real/mount"
    real.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "kube3fs-test", str(real)], check=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "mount").symlink_to(real)
    try:
        clear_target(tmp_path / "mount")
        with pytest.raises(OSError, match="busy"):
            clear_target(tmp_path / "link/mount")
        assert len(mounts.mounts_at(real)) == 1
    finally:
        mounts.unmount(real)


def test_a_pod_has_one_tmpfs_whoever_comes_first(tmp_path: Path) -> None:
    """Volumes that are published side by side do not hide each other's shared memory."""
    shm, start = SharedMemory(tmp_path / "shm"), threading.Barrier(8)

    def ensure(pod: str) -> Path:
        start.wait()
        return shm.ensure(pod)

    with ThreadPoolExecutor(8) as threads:
        for number in range(20):
            pod = f"pod-{number}"
            (path,) = set(threads.map(ensure, [pod] * 8))
            stacked = mounts.mounts_at(path)
            shm.remove(pod)
            assert len(stacked) == 1


def test_mounting_and_unmounting_does_not_read_the_mount_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done for each pod costs the same on a node with a thousand mounts."""
    monkeypatch.setattr(mounts, "_mountinfo", lambda: pytest.fail("read"))
    shm = SharedMemory(tmp_path / "shm")
    shm.ensure("pod-a")
    shm.remove("pod-a")
    clear_target(tmp_path / "missing")
    assert list((tmp_path / "shm").iterdir()) == []
