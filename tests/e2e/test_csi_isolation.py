"""Pods of one user on one volume: nobody reaches another's shared memory, whatever names are guessed."""

from collections.abc import Iterator

import pytest

from tests.e2e.kube import Cluster, ExecFailed, Namespace, wait_for
from tests.e2e.kube3fs import CLASSES, claim, inline, installed, of_claim, pod

VOLUMES = {"/data": of_claim("data"), "/dev/shm": inline("shm", size="16Mi")}

# Holds a ring and a buffer, tells their names, and looks at both when it was attacked.
_VICTIM = """
import os, pathlib, time, usrbio
from array import array
SECRET, SHM = b"secret!!" * 512, pathlib.Path("/dev/shm")
pathlib.Path("/data/known").write_bytes(SECRET)
with (
    usrbio.Mount("/data") as mount,
    usrbio.Ring(mount, 4) as ring,
    usrbio.Iov(mount, 4096) as iov,
    usrbio.File("/data/known") as file,
):
    seen = memoryview(iov).cast("B")
    seen[:] = SECRET
    links = "/data/3fs-virt/iovs"
    own = [name for name in os.listdir(links) if not name.startswith("submit-ios")]
    (SHM / "new").write_text(" ".join([iov.id, os.readlink(f"{links}/submit-ios"), *own]))
    os.replace(SHM / "new", SHM / "names")
    while not (SHM / "attacked").exists():
        time.sleep(0.1)
    assert bytes(seen) == SECRET
    seen[:] = bytes(4096)
    assert list(ring.read(file, array("q", [0]), 4096, iov)) == [4096]
    assert bytes(seen) == SECRET
    del seen
print("unharmed")
"""

# Reads into and writes from a buffer of its own, then one of the id that it is given; prints the answers.
_THIEF = """
import os, sys
from multiprocessing.shared_memory import SharedMemory
from hf3fs_fuse.io import make_ioring, make_iovec, register_fd
from hf3fs_py_usrbio import iovec
with open("/data/loot", "wb") as file:
    file.write(b"attack!!" * 512)
fd = os.open("/data/loot", os.O_RDWR)
register_fd(fd)
shm = SharedMemory(create=True, size=4096)
own = make_iovec(shm, "/data")
stolen = iovec(shm.buf, sys.argv[1], "/data")
for buffer in (own[:], stolen[:]):
    for read in (True, False):
        ring = make_ioring("/data", 4, read)
        ring.prepare(buffer, read, fd, 0)
        (done,) = ring.submit().wait(min_results=1)
        print(done.result)
del own, stolen, buffer, done, ring
shm.unlink()
"""


@pytest.fixture(scope="module", autouse=True)
def _kube3fs(cluster: Cluster) -> Iterator[None]:
    with installed(cluster):
        yield


def shell(namespace: Namespace, name: str, script: str) -> str:
    return namespace.exec(name, "sh", "-c", script)


def test_two_pods_cannot_reach_each_others_buffers(namespace: Namespace) -> None:
    """A ring's symlink to another pod's memory, by guess or through /proc, registers nothing."""
    namespace.apply([claim("data", CLASSES["directory"]), pod("victim", VOLUMES), pod("thief", VOLUMES)])
    namespace.wait_ready("victim", "thief")
    shell(namespace, "victim", "head -c 4096 /dev/zero > /dev/shm/hf3fs-iov-secret")
    for target in (
        "/dev/shm/hf3fs-iov-secret",
        "/dev/shm/../../../proc/1/root/dev/shm/hf3fs-iov-secret",
        "/proc/1/root/dev/shm/hf3fs-iov-secret",
    ):
        key = "6ba7b8109dad11d180b400c04fd430c8"
        with pytest.raises(ExecFailed):
            shell(namespace, "thief", f"ln -s {target} /data/3fs-virt/iovs/{key}")
        assert key not in shell(namespace, "thief", "ls /data/3fs-virt/iovs")


def test_knowing_the_names_of_another_pods_ring_gives_nothing(namespace: Namespace) -> None:
    """A pod of the same user on the same volume that knows the ids of a buffer and a ring reaches neither."""
    victim = pod("victim", VOLUMES, "python3", "-c", _VICTIM)
    namespace.apply([claim("data", CLASSES["directory"]), victim, pod("thief", VOLUMES)])
    namespace.wait_ready("victim", "thief")
    look = "cat /dev/shm/names 2>/dev/null || true"
    names = wait_for("the victim's names", lambda: shell(namespace, "victim", look) or None)
    buffer, semaphore, *links = names.split()
    assert len(links) == 2, "a ring and a buffer"

    # What it may do with its own memory, it may not with the victim's: EINVAL, as for an id that nobody has.
    answers = namespace.exec("thief", "python3", "-c", _THIEF, buffer)
    assert answers.split() == ["4096", "4096", "-22", "-22"]
    assert shell(namespace, "thief", "head -c 8 /data/loot") == "attack!!"
    _refused(namespace, semaphore, links)

    shell(namespace, "victim", "touch /dev/shm/attacked")
    assert namespace.wait_done("victim") == "unharmed\n"


def _refused(namespace: Namespace, semaphore: str, names: list[str]) -> None:
    """The thief sees neither the victim's links nor its semaphore, and cannot remove or register them."""
    for name in names:
        link = f"/data/3fs-virt/iovs/{name}"
        for script in (f"readlink {link}", f"rm {link}", f"ln -s {semaphore} {link}"):
            with pytest.raises(ExecFailed):
                shell(namespace, "thief", script)
    with pytest.raises(ExecFailed, match="No such file"):
        shell(namespace, "thief", f"ls {semaphore}")
    own = shell(namespace, "thief", "ls /data/3fs-virt/iovs").split()
    assert sorted(own) == ["submit-ios", "submit-ios.ph", "submit-ios.pl"]
