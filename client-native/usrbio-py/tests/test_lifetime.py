"""Memory, processes and the daemon: what outlives what."""

import errno
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

import usrbio

BLOCK = 4096


def registered(mount_point: Path) -> set[str]:
    """Names of rings and Iovs of this user."""
    names = set(os.listdir(mount_point / "3fs-virt" / "iovs"))
    return {name for name in names if not name.startswith("submit-ios")}


def run(script: str, *args: object) -> subprocess.CompletedProcess[str]:
    """A Python program in a process of its own, which must say nothing by itself."""
    command = [sys.executable, "-X", "dev", "-c", textwrap.dedent(script), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done


def test_a_buffer_collected_with_io_in_flight_stays_until_it_is_complete(
    mount, ring, path, mount_point, content
):
    """Forgetting Iov, file and batch in flight is safe; the memory goes when the last request is done."""
    before = registered(mount_point)
    for _ in range(50):
        iov, file = usrbio.Iov(mount, 1 << 20), usrbio.File(path)
        ring.submit(file, [0] * 60, 1 << 14, iov)
        del iov, file
    gc.collect()
    with usrbio.Iov(mount, BLOCK) as iov, usrbio.File(path) as file:
        assert list(ring.read(file, 0, BLOCK, iov)) == [BLOCK]
        assert bytes(iov) == content[:BLOCK]
    ring.close()
    assert registered(mount_point) <= before


def test_views_keep_the_memory_of_a_closed_iov(mount, ring, path, mount_point, content):
    """memoryview, NumPy and DLPack views stay valid; the registration goes with the last of them."""
    before = registered(mount_point)
    file = usrbio.File(path)
    iov = usrbio.Iov(mount, BLOCK)
    ring.read(file, 0, BLOCK, iov)
    views = [memoryview(iov), np.frombuffer(iov, np.uint8), np.from_dlpack(iov)]
    iov.close()
    del iov
    gc.collect()
    assert len(registered(mount_point) - before) == 1
    while views:
        assert bytes(views.pop()) == content[:BLOCK]
    assert registered(mount_point) == before


def test_closing_a_ring_waits_for_writes_in_flight(mount, mount_point, tmp_path):
    """What was submitted is written when `with` ends, though nobody waited for it."""
    path = mount_point / f"{tmp_path.name}.out"
    with usrbio.Iov(mount, 1 << 20) as iov, usrbio.File(path, "x") as file:
        memoryview(iov)[:] = bytes([7]) * (1 << 20)
        with usrbio.Ring(mount, 2, read=False) as ring:
            for i in range(16):
                ring.submit(file, i << 16, 1 << 16, iov, i << 16)
    assert path.read_bytes() == bytes([7]) * (1 << 20)


def test_objects_are_collected(mount, path):
    """Nothing keeps a ring, Iov or file that nobody uses."""
    ring, iov, file = usrbio.Ring(mount, 4), usrbio.Iov(mount, BLOCK), usrbio.File(path)
    ring.read(file, 0, 1, iov)
    gone = [weakref.ref(ring)]
    del ring, iov, file
    gc.collect()
    assert [ref() for ref in gone] == [None]


_READ = """
    import sys, usrbio
    mount = usrbio.Mount(sys.argv[1])
    ring, iov, file = usrbio.Ring(mount, 8), usrbio.Iov(mount, 1 << 20), usrbio.File(sys.argv[1])
"""


@pytest.mark.parametrize(
    "end",
    [
        pytest.param("ring.read(file, [0] * 20, 100, iov)", id="after-reading"),
        pytest.param("ring.submit(file, [0] * 20, 1000, iov)", id="in-flight"),
        pytest.param(
            "view = memoryview(iov); view2 = view[5:]; ring.submit(file, 0, 9, iov)", id="with-views"
        ),
        pytest.param("import asyncio; asyncio.run(_one())", id="after-await"),
        pytest.param("import builtins; builtins.kept = [ring, iov, file]", id="never-collected"),
    ],
)
def test_the_interpreters_exit_is_quiet_and_leaves_nothing(end, path, mount_point):
    """No message, no registration and no shared memory, whatever is in flight or open."""
    before, shm = registered(mount_point), set(os.listdir("/dev/shm"))
    script = textwrap.dedent(_READ) + "async def _one(): await ring.submit(file, [0] * 20, 1000, iov)\n" + end
    run(script, path)
    assert registered(mount_point) <= before
    assert {name for name in set(os.listdir("/dev/shm")) - shm if name.startswith("hf3fs-iov")} == set()


def test_a_killed_process_leaves_nothing(path, mount_point):
    """The daemon forgets rings and Iovs of a process that was killed, and nothing is in /dev/shm."""
    before, shm = registered(mount_point), set(os.listdir("/dev/shm"))
    script = textwrap.dedent(_READ) + "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    killed = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while registered(mount_point) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert registered(mount_point) <= before
    assert {name for name in set(os.listdir("/dev/shm")) - shm if name.startswith("hf3fs-iov")} == set()


def _in_child(ring, iov, file, path, queue) -> None:
    try:
        ring.read(file, 0, 10, iov)
    except OSError as error:
        queue.put((type(error).__name__, error.errno, error.strerror))
    ring.close()
    mount = usrbio.Mount(path)
    with usrbio.Ring(mount, 4) as own, usrbio.Iov(mount, 10) as own_iov, usrbio.File(path) as own_file:
        own.read(own_file, 0, 10, own_iov)
        queue.put(bytes(own_iov))


def test_a_ring_used_after_a_fork_raises_and_the_parents_works_on(ring, iov, file, path, content):
    """The child is told to make its own ring, which works; the parent does not notice."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=_in_child, args=(ring, iov, file, path, queue))
    child.start()
    error, its_own = queue.get(), queue.get()
    child.join(30)
    assert child.exitcode == 0
    assert error == (
        "ChildProcessError",
        errno.ECHILD,
        "the ring belongs to the parent process: make rings after fork",
    )
    assert its_own == content[:10]
    assert list(ring.read(file, 0, 10, iov)) == [10]


def test_a_fork_while_other_threads_read_does_not_hang_the_child(mount, path):
    """Locks that another thread held at the fork are never waited for."""
    script = """
        import os, sys, threading, usrbio, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # threads and fork: just what is tried here
        mount = usrbio.Mount(sys.argv[1])
        ring, file, stop = usrbio.Ring(mount, 8), usrbio.File(sys.argv[1]), False
        def reads():
            iov = usrbio.Iov(mount, 8 * 4096)
            while not stop:
                ring.read(file, [0] * 8, 4096, iov)
        threads = [threading.Thread(target=reads) for _ in range(3)]
        for thread in threads: thread.start()
        iov = usrbio.Iov(mount, 10)
        for _ in range(30):
            if (child := os.fork()) == 0:
                try:
                    ring.read(file, 0, 10, iov)
                except ChildProcessError:
                    os._exit(0)
                os._exit(1)
            _, status = os.waitpid(child, 0)
            assert status == 0
        stop = True
        for thread in threads: thread.join()
    """
    run(script, path)


def test_a_spawned_process_makes_its_own(path, tmp_path):
    """Nothing is inherited, all is made anew."""
    script = """
        import sys, usrbio, multiprocessing
        def work(path):
            mount = usrbio.Mount(path)
            with usrbio.Ring(mount, 4) as ring, usrbio.Iov(mount, 10) as iov, usrbio.File(path) as file:
                ring.read(file, 0, 10, iov)
                return bytes(iov)
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(2) as pool:
                print(pool.map(work, [sys.argv[1]] * 4) == [open(sys.argv[1], "rb").read(10)] * 4)
    """
    # spawn imports the main module by its file.
    module = tmp_path / "main.py"
    module.write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, module, path], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_daemon_that_is_killed_is_not_noticed(serve, kill, tmp_path):
    """Kill -9 of the daemon: its successor goes on with ring, Iov and file; no request is lost."""
    with serve(tmp_path / "data", tmp_path / "mnt") as daemon:
        path = tmp_path / "mnt" / "f"
        content = os.urandom(64 * BLOCK)
        path.write_bytes(content)
        mount = usrbio.Mount(path)
        with usrbio.Ring(mount, 16) as ring, usrbio.Iov(mount, 64 * BLOCK) as iov, usrbio.File(path) as file:
            for _ in range(3):
                batch = ring.submit(file, range(0, 64 * BLOCK, BLOCK), BLOCK, iov)
                kill(daemon)
                assert list(batch.wait(60)) == [BLOCK] * 64
                assert bytes(iov) == content


def test_a_daemon_that_is_gone_is_an_error_and_not_a_hang(serve, tmp_path):
    """ENOTCONN with a sentence, for calls and awaits, and closing still works."""
    import asyncio

    with serve(tmp_path / "data", tmp_path / "mnt"):
        path = tmp_path / "mnt" / "f"
        path.write_bytes(b"content")
        mount = usrbio.Mount(path)
        ring, iov, file = usrbio.Ring(mount, 4), usrbio.Iov(mount, 100), usrbio.File(path)
        assert list(ring.read(file, 0, 7, iov)) == [7]
    with pytest.raises(OSError, match="is gone: serve the mount again") as caught:
        ring.read(file, 0, 7, iov)
    assert caught.value.errno == errno.ENOTCONN

    async def one() -> None:
        await ring.submit(file, 0, 7, iov)

    with pytest.raises(OSError, match="is gone"):
        asyncio.run(one())
    with pytest.raises(OSError, match="is gone"):
        ring.close()
    assert ring.closed
    iov.close()
    file.close()


def test_ctrl_c_ends_a_wait(serve, stopped, interrupted, tmp_path):
    """KeyboardInterrupt comes through a call that waits for a daemon that does not answer."""
    with serve(tmp_path / "data", tmp_path / "mnt") as daemon:
        path = tmp_path / "mnt" / "f"
        path.write_bytes(b"content")
        mount = usrbio.Mount(path)
        with usrbio.Ring(mount, 4) as ring, usrbio.Iov(mount, 100) as iov, usrbio.File(path) as file:
            with stopped(daemon), interrupted():
                ring.read(file, 0, 7, iov)
            assert list(ring.read(file, 0, 7, iov)) == [7]


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(lambda ring, *args: ring.read(*args), id="read"),
        pytest.param(lambda ring, *args: ring.submit(*args).wait(), id="wait"),
    ],
)
def test_an_interrupted_read_is_complete_before_the_next_one_into_its_iov_starts(
    read, slow_mount, uncache, stopped, interrupted
):
    """The next batch on the Iov waits for it, on that ring or another, and its bytes stay."""
    top, storage = slow_mount
    slow, fast = top / "slow" / "f", top / "f"
    slow.write_bytes(b"slow" * BLOCK)
    fast.write_bytes(b"fast" * BLOCK)
    mount = usrbio.Mount(top)
    with (
        usrbio.Ring(mount, 4) as ring,
        usrbio.Ring(mount, 4) as other,
        usrbio.Iov(mount, 4 * BLOCK) as iov,
        usrbio.File(slow) as slow_file,
        usrbio.File(fast) as fast_file,
    ):
        ring.read(slow_file, 0, 4 * BLOCK, iov)
        uncache(slow)
        with stopped(storage):
            with interrupted():
                read(ring, slow_file, 0, 4 * BLOCK, iov)
            for again in (ring, other):
                with interrupted():
                    again.submit(fast_file, 0, 4 * BLOCK, iov)
        assert list(other.read(fast_file, 0, 4 * BLOCK, iov)) == [4 * BLOCK]
        assert bytes(iov) == b"fast" * BLOCK
        ring.close()
        assert bytes(iov) == b"fast" * BLOCK
