"""The file system usrbio://."""

import os
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

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
