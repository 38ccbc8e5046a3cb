"""The drop-in modules hf3fs_fuse.io and hf3fs_py_usrbio: the surface of 3FS's, and what is fixed in it."""

import contextlib
import errno
import gc
import os
import subprocess
import sys
import textwrap
from datetime import timedelta
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

import hf3fs_py_usrbio
from hf3fs_fuse import fuse, io

BLOCK = 4096


@contextlib.contextmanager
def shared(size):
    shm = SharedMemory(create=True, size=size)
    try:
        yield shm
    finally:
        shm.unlink()


@pytest.fixture
def memory(mount_point):
    """Shared memory of 16 blocks and its iovec, as fuse_demo.py makes them."""
    with shared(16 * BLOCK) as shm:
        yield shm, io.make_iovec(shm, str(mount_point))
        shm.close()


@pytest.fixture
def fd(path):
    fd = os.open(path, os.O_RDONLY)
    io.register_fd(fd)
    yield fd
    io.deregister_fd(fd)
    os.close(fd)


def test_the_documented_way_works(mount_point, path, content):
    """Shared memory, iovec, ring, registered fd, prepare, submit, wait: as in 3FS's demo."""
    shm = SharedMemory(create=True, size=16 * BLOCK)
    iov = io.make_iovec(shm, str(mount_point), 0, -1)
    shm.unlink()
    ior = io.make_ioring(str(mount_point), 100, True, 0)
    fd = os.open(path, os.O_RDONLY)
    io.register_fd(fd)
    for i in range(16):
        ior.prepare(iov[i * BLOCK : (i + 1) * BLOCK], True, fd, i * 100, userdata=i)
    done = ior.submit().wait(min_results=16)
    assert sorted(piece.userdata for piece in done) == list(range(16))
    for piece in done:
        assert piece.result == BLOCK
        assert piece.base_off == piece.userdata * BLOCK
        assert bytes(piece) == content[piece.userdata * 100 :][:BLOCK]
        assert bytes(shm.buf[piece.base_off :][:BLOCK]) == bytes(piece)
    io.deregister_fd(fd)
    os.close(fd)
    shm.close()


def test_wait_answers_the_objects_that_were_prepared(mount_point, memory, fd):
    """The same iovec objects come back, at most as many as asked for, one if nothing is said."""
    _, iov = memory
    ior = io.make_ioring(str(mount_point), 16)
    pieces = [iov[i : i + 1] for i in range(8)]
    for piece in pieces:
        assert ior.prepare(piece, True, fd, 0) is ior.ior
    ior.submit()
    done = ior.wait(min_results=2, max_results=3, timeout=timedelta(seconds=30))
    assert 2 <= len(done) <= 3
    done += ior.wait(min_results=8 - len(done), timeout=30.0)
    assert {id(piece) for piece in done} == {id(piece) for piece in pieces}
    assert ior.wait() == []
    assert ior.wait(min_results=1, timeout=0.01) == []


def test_an_interrupted_wait_loses_no_completion(slow_mount, uncache, stopped, interrupted):
    """What it had taken is answered by the next one, first."""
    top, storage = slow_mount
    files = [top / "f", top / "slow" / "f"]
    ior = io.make_ioring(str(top), 4)
    with shared(2 * BLOCK) as shm, contextlib.ExitStack() as stack:
        iov = io.make_iovec(shm, str(top))
        stack.callback(shm.close)
        stack.callback(ior.ior.destroy)
        pieces = iov[:BLOCK], iov[BLOCK:]

        def submit() -> None:
            for piece, fd in zip(pieces, fds, strict=True):
                ior.prepare(piece, True, fd, 0)
            ior.submit()

        fds = []
        for file in files:
            file.write_bytes(bytes(BLOCK))
            fds.append(os.open(file, os.O_RDONLY))
            stack.callback(os.close, fds[-1])
            io.register_fd(fds[-1])
            stack.callback(io.deregister_fd, fds[-1])
        submit()
        assert len(ior.wait(min_results=2, timeout=30)) == 2
        uncache(files[1])
        with stopped(storage):
            submit()
            with interrupted():
                ior.wait(min_results=2)
            assert ior.wait(min_results=1, timeout=0) == [pieces[0]]
        assert ior.wait(min_results=1, timeout=30) == [pieces[1]]


def test_writes_and_force_fsync(mount_point, memory, tmp_path):
    """A ring for writes writes, and force_fsync answers 0."""
    shm, iov = memory
    shm.buf[:3] = b"abc"
    path = mount_point / f"{tmp_path.name}.out"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    handle = io.register_fd(fd)
    assert handle < 0
    ior = io.make_ioring(
        str(mount_point), 4, for_read=False, priority=io.IorPriority.HIGH, timeout=1, flags=1
    )
    ior.prepare(iov[:3], False, handle, 5)
    assert ior.submit().wait(min_results=1)[0].result == 3
    assert io.force_fsync(fd) == 0
    assert path.read_bytes() == bytes(5) + b"abc"
    io.deregister_fd(fd)
    os.close(fd)
    assert io.force_fsync(fd) == -1


def test_slices_by_a_view(memory):
    """slice_by finds the part that a NumPy view of the shared memory covers."""
    shm, iov = memory
    array = np.frombuffer(shm.buf, np.uint8)
    piece = iov.iov.slice_by(array[100:300])
    assert (piece.base_off, len(piece), len(memoryview(piece))) == (100, 200, 200)
    assert piece.slice_by(array[150:151]).base_off == 150
    with pytest.raises(IndexError):
        piece.slice_by(array[50:150])
    with pytest.raises(IndexError):
        iov.iov.slice_by(bytes(5))
    with pytest.raises(TypeError, match="slices only"):
        iov[5]
    with pytest.raises(ValueError, match="step 1 only"):
        iov[::2]
    with pytest.raises(TypeError):
        iov[0:4] = b"abcd"
    del array


@pytest.mark.parametrize(
    ("prepare", "code"),
    [
        pytest.param(lambda ior, iov, fd: ior.prepare(iov[:1], False, fd, 0), errno.EINVAL, id="direction"),
        pytest.param(lambda ior, iov, fd: ior.prepare(iov[:0], True, fd, 0), errno.EINVAL, id="no-bytes"),
        pytest.param(lambda ior, iov, fd: ior.prepare(iov[:1], True, 0, 0), errno.EBADF, id="not-registered"),
        pytest.param(lambda ior, iov, fd: ior.prepare(iov[:1], True, 1 << 30, 0), errno.EINVAL, id="no-fd"),
    ],
)
def test_errnos_are_3fs_s(prepare, code, mount_point, memory, fd):
    """OSError with the errno that 3FS answers."""
    ior = io.make_ioring(str(mount_point), 1)
    with pytest.raises(OSError, match=rf"^\[Errno {code}\] ") as caught:
        prepare(ior, memory[1], fd)
    assert caught.value.errno == code
    ior.prepare(memory[1][:1], True, fd, 0)
    with pytest.raises(BlockingIOError):
        ior.prepare(memory[1][1:2], True, fd, 0)
    with pytest.raises(OSError, match="registered already") as caught:
        io.register_fd(fd)
    assert caught.value.errno == errno.EINVAL


def test_errors_of_requests_are_results(mount_point, memory, fd):
    """An I/O error is not raised: the result is negative."""
    _, iov = memory
    ior = io.make_ioring(str(mount_point), 4)
    os.unlink(iov.link)  # as if the daemon had forgotten it
    ior.prepare(iov[:1], True, fd, 0)
    assert ior.submit().wait(min_results=1)[0].result == -errno.EINVAL


def test_a_slice_keeps_the_registration(mount_point, fd, content):
    """Fixed: a slice outlives make_iovec's object, and the SharedMemory that was closed."""
    shm = SharedMemory(create=True, size=BLOCK)
    iov = io.make_iovec(shm, str(mount_point))
    shm.unlink()
    link, piece = iov.link, iov[:BLOCK]
    del iov
    gc.collect()
    ior = io.make_ioring(str(mount_point), 4)
    ior.prepare(piece, True, fd, 0).submit()
    shm.close()
    assert ior.wait(min_results=1)[0].result == BLOCK
    assert bytes(piece) == content[:BLOCK]
    del piece
    gc.collect()
    assert not os.path.lexists(link)


def test_a_closed_fd_can_be_deregistered(path):
    """Fixed: closing before deregistering poisons no fd number."""
    fd = os.open(path, os.O_RDONLY)
    io.register_fd(fd)
    os.close(fd)
    io.deregister_fd(fd)
    again = os.open(path, os.O_RDONLY)
    assert again == fd
    io.register_fd(again)
    io.deregister_fd(again)
    os.close(again)


def test_userdata_is_let_go(mount_point, memory, fd):
    """Fixed: userdata of a refused request does not leak, nor after the iovec is gone."""
    import weakref

    class Thing:
        pass

    refused, taken = Thing(), Thing()
    gone = [weakref.ref(refused), weakref.ref(taken)]
    ior = io.make_ioring(str(mount_point), 4)
    with pytest.raises(OSError, match="this one is for the other"):
        ior.prepare(memory[1][:1], False, fd, 0, refused)
    ior.prepare(memory[1][:1], True, fd, 0, taken)
    done = ior.submit().wait(min_results=1)
    del refused, taken, done
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


def test_the_interpreters_exit_is_quiet(mount_point, path):
    """Fixed: no FileNotFoundError from destructors, whatever is left open."""
    script = """
        import os, sys
        from multiprocessing.shared_memory import SharedMemory
        from hf3fs_fuse.io import *
        shm = SharedMemory(create=True, size=4096)
        iov = make_iovec(shm, sys.argv[1]); shm.unlink()
        ior = make_ioring(sys.argv[1], 4)
        fd = os.open(sys.argv[2], os.O_RDONLY); register_fd(fd)
        ior.prepare(iov[:], True, fd, 0).submit()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), mount_point, path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_read_file(path, content, mount_point):
    """Whole, from an offset, in blocks, and with a callback that seeks and stops."""
    assert io.read_file(str(path)) == content
    assert io.read_file(str(path), str(mount_point), block_size=1000, off=5, priority=0) == content[5:]
    seen = []

    def look(block, off):
        seen.append((off, bytes(block)))
        return {0: 5000, 5000: None}.get(off, True)

    assert io.read_file(str(path), block_size=1000, cb=look) is None
    assert seen == [(off, content[off : off + 1000]) for off in (0, 5000, 6000)]
    with pytest.raises(ValueError, match="on no 3FS mount"):
        io.read_file("/etc/passwd")


@pytest.mark.parametrize("block_size", [BLOCK, 3 * BLOCK, 1 << 30])
def test_read_file_reads_holes_as_zeros(block_size, mount_point, tmp_path):
    """It ends where the file does, not at a hole of a whole block, nor at one at the end."""
    path = mount_point / f"{tmp_path.name}.sparse"
    with path.open("wb") as file:
        for at in (1, 9):
            file.seek(at * BLOCK)
            file.write(bytes([at]) * BLOCK)
        file.truncate(20 * BLOCK + 1)
    content = path.read_bytes()
    assert io.read_file(str(path), block_size=block_size) == content
    assert io.read_file(str(path), block_size=block_size, off=5) == content[5:]
    assert io.read_file(str(path), block_size=block_size, off=len(content)) == b""
    seen = []
    io.read_file(str(path), block_size=block_size, cb=lambda block, off: seen.append((off, bytes(block))))
    assert [off for off, _ in seen] == list(range(0, len(content), block_size))
    assert b"".join(block for _, block in seen) == content


def test_names_links_and_holes(mount_point, path, content):
    """extract_mount_point, hardlink, punch_hole and get_mount_point."""
    assert io.extract_mount_point(str(path)) == str(mount_point)
    assert io.extract_mount_point("/etc/passwd") is None
    assert io.extract_mount_point("/no/such/path") is None
    link = f"{path}.link"
    io.hardlink(str(path), link)
    assert os.path.samefile(path, link)
    io.punch_hole(link, [0], [1 << 16])
    assert path.read_bytes() == bytes(1 << 16) + content[1 << 16 :]
    assert fuse.get_mount_point("/hf3fs/mnt/a/b") == "/hf3fs/mnt"
    assert io.ioring.size_for_entries(1024) == 102544


def test_holes_are_punched_by_an_fd_that_is_open_for_reading(path, content):
    """Whoever may write the file may; the daemon itself wants an fd that is open for writing."""
    fd = os.open(path, os.O_RDONLY)
    io.punch_hole(fd=fd, start=[0], end=[4096])
    io.punch_hole(filename=str(path), start=[8192], end=[12288])
    os.close(fd)
    assert path.read_bytes() == bytes(4096) + content[4096:8192] + bytes(4096) + content[12288:]
    with pytest.raises(TypeError, match="wants a file name or an fd"):
        io.punch_hole(start=[], end=[])


def test_shared_memory_that_does_not_fit_is_an_error_with_numbers(mount_point):
    """Not a signal at its first touch."""
    space = os.statvfs("/dev/shm")
    size = space.f_bavail * space.f_frsize + (1 << 30)
    shm = SharedMemory(create=True, size=size)
    try:
        with pytest.raises(OSError, match=f"{size} bytes of shared memory do not fit.*shm-size") as refused:
            io.make_iovec(shm, str(mount_point))
        assert refused.value.errno == errno.ENOSPC
    finally:
        shm.close()
        shm.unlink()


def test_programs_of_3fs_find_what_they_import_and_pass(mount_point, memory, fd):
    """The native module by its name there, the object of make_iovec as a whole, errors as OSError."""
    assert io.h3fio is hf3fs_py_usrbio
    ior = io.make_ioring(str(mount_point), 4)
    ior.prepare(memory[1], True, fd, 0)
    assert ior.submit().wait(min_results=1)[0].result == len(memory[1])
    with pytest.raises(OSError, match="batches of 9"):
        io.make_ioring(str(mount_point), 4, True, 9)


def test_the_native_module_has_3fs_s_names(mount_point, memory):
    """hf3fs_py_usrbio may be used by itself, on any writable buffer that is registered."""
    wanted = {"deregister_fd", "extract_mount_point", "force_fsync", "hardlink", "ioring", "iovec"}
    wanted |= {"punch_hole", "register_fd"}
    assert wanted <= set(dir(hf3fs_py_usrbio))
    shm, iov = memory
    native = hf3fs_py_usrbio.iovec(shm.buf, os.path.basename(iov.link), str(mount_point), 0, -1)
    assert len(native) == 16 * BLOCK
    with pytest.raises(ValueError, match="is no UUID"):
        hf3fs_py_usrbio.iovec(shm.buf, "nonsense", str(mount_point))
    with pytest.raises(BufferError):
        hf3fs_py_usrbio.iovec(b"read-only", os.path.basename(iov.link), str(mount_point))
    del native


def test_a_ring_of_the_parent_is_refused_in_a_forked_child(mount_point, memory, fd):
    """ECHILD instead of a garbled ring."""
    ior = io.make_ioring(str(mount_point), 4)
    if (child := os.fork()) == 0:
        try:
            ior.prepare(memory[1][:1], True, fd, 0)
        except ChildProcessError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    ior.prepare(memory[1][:1], True, fd, 0)
    assert ior.submit().wait(min_results=1)[0].result == 1
