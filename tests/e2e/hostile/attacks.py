"""What a restricted pod of uid 1000 may try on its node: `attacks.py NAME SECONDS [ARGUMENT]`.

Each attack is bounded in count and time and prints what it was answered as JSON. /data is the pod's volume,
/dev/shm its shared memory.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import pathlib
import shutil
import socket
import struct
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

DATA = pathlib.Path("/data")
VIRT = DATA / "3fs-virt"
LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_EXCHANGE, AT_FDCWD = 2, -100

# ioctls of 3FS (hf3fs_fuse.h)
REMOVE, MOVE, HARDLINK, PUNCH_HOLE, REMOVE_TREE = 0x4110680F, 0x4218680E, 0x4108680C, 0x7E90680D, 0x8004680A


def answer(call: Callable[[], object]) -> str:
    """The errno's name of a call, or "done"."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "done"


def until(seconds: float, most: int) -> Iterator[int]:
    """Counts to `most`, for at most `seconds`."""
    end = time.monotonic() + seconds
    for number in range(most):
        if time.monotonic() > end:
            return
        yield number


def hold(seconds: float) -> None:
    """Keeps what it has for a while: the time in which a neighbour would notice."""
    time.sleep(seconds)


def directories(seconds: float, _: str) -> object:
    """Open directories, each of which costs the daemon something, until none is to be had."""
    answers: Counter[str] = Counter()
    held = []
    for _number in until(seconds, 20_000):
        try:
            held.append(os.open(DATA, os.O_RDONLY | os.O_DIRECTORY))
            os.listdir(held[-1])
            answers["done"] += 1
        except OSError as error:
            answers[errno.errorcode[error.errno or 0]] += 1
            break
    hold(seconds)
    for fd in held:
        os.close(fd)
    return answers


def locks(seconds: float, _: str) -> object:
    """Byte-range locks on every second byte, and processes that wait for one of them."""
    path = DATA / "many-locks"
    answers: Counter[str] = Counter()
    with open(path, "w+b") as file:
        for number in until(seconds, 120_000):
            got = answer(lambda n=number: fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * n))  # type: ignore[misc]
            answers[got] += 1
            if got != "done":
                break
        waiters = [pid for _ in range(64) if (pid := _wait_for_lock(path))]
        for number in until(seconds, 1_000_000):
            # One more and one less, where its owner may have one more.
            answer(lambda n=number: fcntl.lockf(file, fcntl.LOCK_EX, 1, 300_000 + n % 2))  # type: ignore[misc]
            fcntl.lockf(file, fcntl.LOCK_UN, 1, 300_000 + number % 2)
    for pid in waiters:
        os.waitpid(pid, 0)
    path.unlink()
    return answers


def _wait_for_lock(path: pathlib.Path) -> int:
    """A process that waits for the first lock, and ends when it has it."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
        os._exit(0)
    return pid


def sparse_memory(seconds: float, _: str) -> object:
    """A buffer that is larger than the pod's memory limit, of which no page was touched."""
    name, size = f"hf3fs-iov-{uuid.uuid4()}", 2 << 30
    path = pathlib.Path("/dev/shm") / name
    with open(path, "w+b") as file:
        file.truncate(size)
    key = VIRT / "iovs" / str(uuid.uuid4())
    got = answer(lambda: key.symlink_to(path))
    hold(min(seconds, 2))
    with contextlib.suppress(OSError):
        key.unlink()
    path.unlink()
    return got


def garbage_in_iovs(seconds: float, _: str) -> object:
    """Names and targets that no client ever sent, and semaphores that were posted too often."""
    names = [
        "x" * 255,
        "..b4096",
        "a.r0.t0",
        f"{uuid.uuid4()}.b-1",
        f"{uuid.uuid4()}.r99999999.t0",
        "\n",
        "é.b1",
    ]
    targets = ["/dev/shm/none", "/proc/self/mem", "/dev/shm/../../etc/passwd", "/" + "a" * 4000, "/dev/zero"]
    answers: Counter[str] = Counter()
    for number in until(seconds, 2_000):
        name, target = names[number % len(names)], targets[number % len(targets)]
        answers[answer(lambda n=name, t=target: (VIRT / "iovs" / n).symlink_to(t))] += 1  # type: ignore[misc]
    for link in ("submit-ios", "submit-ios.ph", "submit-ios.pl"):
        with (
            open(os.readlink(VIRT / "iovs" / link), "r+b") as file,
            mmap.mmap(file.fileno(), 32) as semaphore,
        ):
            semaphore[:8] = struct.pack("<II", 2**31 - 1, 0)
    return answers


def many_rings(seconds: float, _: str) -> object:
    """Rings until none is to be had."""
    import usrbio

    rings: list[usrbio.Ring] = []
    with usrbio.Mount(str(DATA)) as mount:
        try:
            for _number in until(seconds, 2_000):
                rings.append(usrbio.Ring(mount, 16))
            got = "done"
        except OSError as error:
            got = str(error)
        hold(min(seconds, 1))
        count = len(rings)
        for ring in rings:
            ring.close()
    return [count, got]


def holes(seconds: float, _: str) -> object:
    """Reads over a file of many holes: nothing is copied until each was looked for."""
    from array import array

    import usrbio

    path, extents = DATA / "holes", 10_000
    with open(path, "wb") as out:
        for number in range(extents):
            out.seek(number * 8192 + 4096)
            out.write(b"x")
    length = extents * 8192
    answers: Counter[int] = Counter()
    with (
        usrbio.Mount(str(DATA)) as mount,
        usrbio.Ring(mount, 8) as ring,
        usrbio.Iov(mount, 64 << 20) as iov,
        usrbio.File(str(path)) as file,
    ):
        for _number in until(seconds, 1_000):
            results = ring.read(file, array("q", [1] * 8), min(length, 8 << 20), iov)
            answers.update(results)
    path.unlink()
    return {str(key): value for key, value in answers.items()}


def guarded_files(_: float, __: str) -> object:
    """The files that the attack by a read-only mount is on."""
    (DATA / "guarded/tree").mkdir(parents=True)
    for name in ("one", "two", "three"):
        (DATA / "guarded" / name).write_bytes(b"precious" * 1024)
    return sorted(os.listdir(DATA / "guarded"))


def read_only_orders(_: float, __: str) -> object:
    """The ioctls that change files, in a container that has its volume read-only."""
    folder = DATA / "guarded"
    top, tree = os.open(folder, os.O_RDONLY), os.open(folder / "tree", os.O_RDONLY)
    file = os.open(folder / "three", os.O_RDONLY)
    inode = os.fstat(top).st_ino
    orders = {
        "remove": lambda: fcntl.ioctl(top, REMOVE, struct.pack("Q256sB7x", inode, b"one", 0)),
        "move": lambda: fcntl.ioctl(top, MOVE, struct.pack("Q256sQ256sB7x", inode, b"two", inode, b"new", 0)),
        "hardlink": lambda: fcntl.ioctl(file, HARDLINK, struct.pack("Q255sx", inode, b"link")),
        "punch-hole": lambda: fcntl.ioctl(
            file, PUNCH_HOLE, bytearray(struct.pack("iIQ1000Q1000Q", 1, 0, 0, *[0] * 1000, 4096, *[0] * 999))
        ),
        "remove-tree": lambda: fcntl.ioctl(tree, REMOVE_TREE, bytearray(4)),
        "order-by-link": lambda: os.symlink("/data/guarded/tree", "/data/3fs-virt/rm-rf/tree"),
        "plain": lambda: os.unlink("/data/guarded/one"),
    }
    answers = {name: answer(order) for name, order in orders.items()}
    whole = (folder / "three").read_bytes() == b"precious" * 1024
    return {"answers": answers, "left": sorted(os.listdir(folder)), "whole": whole}


def orders_in_archives(_: float, __: str) -> object:
    """Links as an archive could have them: outside 3fs-virt they are links, and nothing more."""
    folder = DATA / "unpacked"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    (folder / "latest").symlink_to("mv:/data/unpacked/mine")
    kept = [(folder / "mine").read_text(), os.readlink(folder / "latest")]
    listed = "3fs-virt" in os.listdir(DATA)
    shutil.rmtree(folder)
    return {"kept": kept, "3fs-virt is listed": listed}


def log_flood(seconds: float, _: str) -> object:
    """Refused ioctls as fast as they go, with names that end a line of a log."""
    forged = b"x\n2026-01-01T00:00:00.000000Z ERROR FORGED LINE"
    fd = os.open(DATA, os.O_RDONLY)
    inode = os.fstat(fd).st_ino
    made = DATA / os.fsdecode(forged)
    made.mkdir()
    fcntl.ioctl(fd, REMOVE, struct.pack("Q256sB7x", inode, forged, 1))
    answers: Counter[str] = Counter()
    for _number in until(seconds, 200_000):
        order = struct.pack("Q256sB7x", inode, forged, 1)
        answers[answer(lambda o=order: fcntl.ioctl(fd, REMOVE, o))] += 1  # type: ignore[misc]
    os.close(fd)
    return answers


def notifications(seconds: float, _: str) -> object:
    """Removals by ioctl in a directory that a rename into rm-rf holds locked."""
    folder = DATA / "locked"
    (folder / "big").mkdir(parents=True)
    for number in range(3_000):
        (folder / "big" / str(number)).touch()
    for number in range(400):
        (folder / f"r{number}").touch()
    mover = os.fork()
    if mover == 0:
        with contextlib.suppress(OSError):
            os.rename(folder / "big", VIRT / "rm-rf/big")
        os._exit(0)
    fd = os.open(folder, os.O_RDONLY)
    inode = os.fstat(fd).st_ino
    answers: Counter[str] = Counter()
    for number in until(seconds, 400):
        order = struct.pack("Q256sB7x", inode, b"r%d" % number, 0)
        answers[answer(lambda o=order: fcntl.ioctl(fd, REMOVE, o))] += 1  # type: ignore[misc]
    os.waitpid(mover, 0)
    os.close(fd)
    shutil.rmtree(folder)
    return answers


def deep_tree(seconds: float, _: str) -> object:
    """Directories in directories, and long names, left for whoever cleans up."""
    os.chdir(DATA)
    depth = 0
    for _number in until(seconds, 20_000):
        os.mkdir("d")
        os.chdir("d")
        depth += 1
    os.chdir(DATA)
    (DATA / "names").mkdir()
    for number in until(seconds, 20_000):
        (DATA / "names" / f"{number:0>250}").touch()
    return depth


def flip(seconds: float, target: str) -> object:
    """A directory and a link to a folder outside change places, while somebody copies the volume as root."""
    folder, link = os.fsencode(DATA / "flip"), os.fsencode(DATA / "flop")
    (DATA / "flip").mkdir(exist_ok=True)
    (DATA / "flip/inside").write_text("inside")
    if not os.path.islink(link):
        os.symlink(target, link)
    count = 0
    for count in until(seconds, 10_000_000):
        LIBC.renameat2(AT_FDCWD, folder, AT_FDCWD, link, RENAME_EXCHANGE)
        if count % 100 == 0:
            time.sleep(0.001)
    return count


def connections(seconds: float, address: str) -> object:
    """Connections to a port of the node plugin that never say anything."""
    host, port = address.rsplit(":", 1)
    held = []
    answers: Counter[str] = Counter()
    for _number in range(100):
        client = socket.socket()
        client.settimeout(1)
        answers[answer(lambda c=client: c.connect((host, int(port))))] += 1  # type: ignore[misc]
        held.append(client)
    hold(seconds)
    for client in held:
        client.close()
    return answers


ATTACKS: dict[str, Callable[[float, str], object]] = {
    attack.__name__.replace("_", "-"): attack
    for attack in (
        directories,
        locks,
        sparse_memory,
        garbage_in_iovs,
        many_rings,
        holes,
        guarded_files,
        read_only_orders,
        orders_in_archives,
        log_flood,
        notifications,
        deep_tree,
        flip,
        connections,
    )
}

if __name__ == "__main__":
    name, span, *more = sys.argv[1:]
    print(json.dumps(ATTACKS[name](float(span), more[0] if more else "")))
