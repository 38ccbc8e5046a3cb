"""nosuid, nodev and noexec of mountOptions, and what container runtimes do to them."""

from pathlib import Path

import pytest
from test_node import Node, in_thread, node  # noqa: F401 a fixture

from kube3fs_csi.node import keep_flags, mounts

FLAGS = {"nosuid": mounts.MS_NOSUID, "nodev": mounts.MS_NODEV, "noexec": mounts.MS_NOEXEC}


@pytest.mark.parametrize("read_only", [False, True], ids=["rw", "ro"])
async def test_a_runtime_cannot_drop_the_mount_options(
    node: Node,  # noqa: F811
    tmp_path: Path,
    read_only: bool,
) -> None:
    """As runc mounts a volume into a pod: a bind mount, and a remount with nothing but `rw` or `ro`."""
    want = node.want("pod-a", "v1", mount_flags=sum(FLAGS.values()), read_only=read_only)
    inside = tmp_path / "inside"
    inside.mkdir()
    async with node.plugin() as publisher:
        node.make_volume(publisher, "v1")
        await publisher.publish(want)
        (mount,) = mounts.mounts_at(want.target)
        assert FLAGS.keys() <= mount.options
        mounts.bind(want.target, inside)
        for flags in (0, mounts.MS_RDONLY):
            with pytest.raises(PermissionError):
                mounts.remount_bind(inside, flags)
        mounts.remount_bind(inside, sum(FLAGS.values()))
        (copy,) = mounts.mounts_at(inside)
        assert FLAGS.keys() <= copy.options
        assert "ro" not in copy.options  # the file system is, where the volume is
        if read_only:
            with pytest.raises(OSError, match="Read-only"):
                await in_thread((want.target / "file").touch)
        else:
            await in_thread((want.target / "file").touch)
        mounts.unmount(inside)
        await publisher.unpublish("v1", want.target)
        assert node.mounted() == []


def test_a_copy_that_takes_too_long_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the machine that is slow, and no defect."""
    monkeypatch.setattr(keep_flags, "_SECONDS", 0)
    with pytest.raises(TimeoutError, match=str(tmp_path)):
        keep_flags.locked_copy(tmp_path)
