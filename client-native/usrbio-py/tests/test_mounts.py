"""Mounts as containers have them: read-only, or a part of a volume."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

_READ = """
import errno, os, sys, usrbio
mount = usrbio.Mount(sys.argv[1])
registered = lambda: set(os.listdir(mount.path + "/3fs-virt/iovs"))
before = registered()
with usrbio.Iov(mount, 8192) as iov, usrbio.Ring(mount, 8) as ring, usrbio.File(sys.argv[2]) as file:
    assert list(ring.read(file, [0, 4096], 4096, iov)) == [4096, 4096]
    assert bytes(memoryview(iov)) == open(sys.argv[2], "rb").read(8192)
from multiprocessing.shared_memory import SharedMemory
from hf3fs_fuse.io import make_ioring, make_iovec
shm = SharedMemory(create=True, size=4096)
iov = make_iovec(shm, mount.path)
shm.unlink()
try:
    usrbio.Ring(mount, 8, read=False)
except OSError as error:
    print("writing:", errno.errorcode[error.errno])
else:
    print("writing: ok")
del iov
print("left:", len(registered() - before))
import fsspec
assert len(fsspec.filesystem("usrbio").cat_file(sys.argv[2], 0, 10)) == 10
"""


@pytest.fixture
def container(mount_point, tmp_path):
    """Runs a command where the volume, or a part of it, is seen at another place."""

    def run(part, options, *command):
        place = tmp_path / "place"
        place.mkdir(exist_ok=True)
        steps = ('mount --bind "$1" "$2"', 'mount -o "remount,bind,$3" "$2"', 'umount -l "$4"', "shift 4")
        script = " && ".join([*steps, 'exec "$@"'])
        arguments = [mount_point / part, place, options, mount_point]
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *arguments, *command],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("part", "options", "writing"),
    [
        pytest.param(".", "ro", "EROFS", id="read-only"),
        pytest.param("team", "ro", "EROFS", id="read-only-sub-path"),
        pytest.param("team", "rw", "ok", id="sub-path"),
    ],
)
def test_rings_work_in_every_mount_of_a_volume(
    container, mount_point, tmp_path, content, part, options, writing
):
    """Reads do on a read-only mount and below a subPath; writes where the mount is writable."""
    (mount_point / "team").mkdir(exist_ok=True)
    (mount_point / part / "set.bin").write_bytes(content)
    place = tmp_path / "place"
    done = container(part, options, sys.executable, "-c", _READ, place, place / "set.bin")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"writing: {writing}\nleft: 0\n"


def test_check_works_on_a_read_only_mount(container, mount_point, tmp_path, content):
    """It reads some file that is there."""
    (mount_point / "team").mkdir(exist_ok=True)
    (mount_point / "team/set.bin").write_bytes(content)
    done = container(
        "team", "ro", Path(sysconfig.get_path("scripts")) / "usrbio", "check", tmp_path / "place"
    )
    assert "ok    a read through the ring is answered\n" in done.stdout, done.stdout + done.stderr
