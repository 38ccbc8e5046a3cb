"""The mount table as the kernel writes it."""

import subprocess
from pathlib import Path

from kube3fs_csi.node import mounts

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
