"""The file system usrbio://."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from usrbio import _pool
from usrbio.fsspec import UsrbioFileSystem


@pytest.fixture
def fs():
    fs = fsspec.filesystem("usrbio", skip_instance_cache=True)
    assert isinstance(fs, UsrbioFileSystem)
    return fs


def test_open_reads_through_the_protocol(path, content):
    """Fsspec finds the file system by its protocol, and files behave as files."""
    with fsspec.open(f"usrbio://{path}") as file:
        assert file.read(10) == content[:10]
        file.seek(-10, 2)
        assert file.read() == content[-10:]
    with fsspec.open(f"usrbio://{path}", "rb", block_size=1000, cache_type="none") as file:
        assert file.read() == content
    with fsspec.open(f"usrbio://{path}.txt", "w") as file:
        file.write("text\n")
    with fsspec.open(f"usrbio://{path}.txt", "r") as file:
        assert list(file) == ["text\n"]


def test_any_number_of_slashes_is_the_absolute_path(fs, path, content):
    """Tools that keep URLs as paths lose slashes."""
    for slashes in ("", "/", "//", "///"):
        assert fs.cat_file(f"usrbio:{slashes}{path.relative_to('/')}", 0, 4) == content[:4]
    with fsspec.open(f"usrbio://{path.relative_to('/')}") as file:
        assert file.read(4) == content[:4]


def test_many_threads_share_little_memory(fs, path, content):
    """A read takes what it needs, and a bounded number of rings serves all threads."""
    before = _shm_in_use()
    together = threading.Barrier(50)

    def read(number):
        data = fs.cat_file(str(path), number, number + 10)
        together.wait()
        return data

    with ThreadPoolExecutor(50) as pool:
        assert list(pool.map(read, range(50))) == [content[n : n + 10] for n in range(50)]
        assert _shm_in_use() - before < 4 << 20


def test_where_shared_memory_is_short_files_are_read_through_the_mount(fs, path, content, monkeypatch):
    """Without room for a ring, and with room for a small one only."""
    iov = _pool.Iov

    def short(mount, size):
        if size > room:
            raise OSError(errno.ENOSPC, "no room")
        return iov(mount, size)

    monkeypatch.setattr(_pool, "Iov", short)
    room = 0
    assert fs.cat_file(str(path)) == content
    assert fs.cat_ranges([str(path)] * 3, [0, 5, 9], [5, 9, 9]) == [content[:5], content[5:9], b""]
    room = 64 << 10
    assert fs.cat_file(str(path), 0, 10) == content[:10]
    assert fs.cat_file(str(path)) == content


def test_a_read_that_fails_gives_its_room_back(fs, path, content, monkeypatch):
    """However often."""

    def fail(*_):
        raise OSError(errno.EIO, "broken")

    fs.cat_file(str(path))
    (pool,) = fs._reader._pools._pools.values()
    with monkeypatch.context() as broken:
        broken.setattr(_pool.Ring, "read", fail)
        for _ in range(40):
            with pytest.raises(OSError, match="broken"):
                fs.cat_file(str(path))
    assert (pool._count, pool._bytes) == (0, 0)
    assert fs.cat_file(str(path)) == content


def _shm_in_use():
    space = os.statvfs("/dev/shm")
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def test_parts_of_files(fs, path, content):
    """cat_file takes ends as slices do; cat_ranges answers in order, over several files."""
    other = path.with_suffix(".other")
    other.write_bytes(content[::-1])
    assert fs.cat_file(f"usrbio://{path}") == content
    assert fs.cat_file(str(path), 10, -10) == content[10:-10]
    assert fs.cat_file(str(path), -5) == content[-5:]
    paths, starts, ends = [str(path), str(other)] * 50, list(range(100)), [s + 7 for s in range(100)]
    wanted = [(content, content[::-1])[i % 2][i : i + 7] for i in range(100)]
    assert fs.cat_ranges(paths, starts, ends) == wanted
    assert fs.cat_ranges([str(path)] * 2, 5, None) == [content[5:]] * 2
    assert fs.cat_ranges([], [], []) == []


def test_errors_stand_in_their_places(fs, path, content):
    """on_error decides between an exception in the list and one that is raised."""
    paths = [str(path), f"{path}.missing"]
    first, second = fs.cat_ranges(paths, 0, 4)
    assert first == content[:4]
    assert isinstance(second, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(paths, 0, 4, on_error="raise")
    with pytest.raises(FileNotFoundError):
        fs.open(f"{path}.missing")
    with pytest.raises(OSError, match="is on no 3FS mount"):
        fs.cat_file("/etc/passwd")
    with pytest.raises(ValueError, match="one for each path"):
        fs.cat_ranges(paths, [0], [1])


def test_holes_read_as_zeros(fs, mount_point, tmp_path):
    """Also one that a whole read lies in."""
    sparse = mount_point / f"{tmp_path.name}.sparse"
    with sparse.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    assert fs.cat_file(str(sparse)) == bytes(1 << 20) + b"end"


def test_listing_is_the_local_file_systems(fs, path):
    """ls, info and exists speak of the mount's files by their paths."""
    assert fs.exists(f"usrbio://{path}")
    assert fs.info(str(path))["size"] == path.stat().st_size
    assert str(path) in fs.ls(str(path.parent), detail=False)
    assert fs.unstrip_protocol(str(path)) == f"usrbio://{path}"


def test_threads_and_forked_children_have_rings_of_their_own(fs, path, content):
    """One instance serves many threads, and a child after a fork."""
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(fs.cat_file, [str(path)] * 20)) == {content}
    fs.cat_file(str(path))
    if (child := os.fork()) == 0:
        os._exit(0 if fs.cat_file(str(path)) == content else 1)
    assert os.waitpid(child, 0)[1] == 0
