"""The back ends on real file systems: btrfs, one with reflinks (xfs) and one without (ext4)."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kube3fs_csi.backends import base, btrfs, choose, directory
from kube3fs_csi.backends.base import Backend, Source
from kube3fs_csi.node import trees
from kube3fs_csi.serving.errors import AlreadyExists, Busy, Exhausted, NotFound, OutOfRange, Precondition

MIB = 1 << 20
MakeRoot = Callable[[str], Path]


def open_root(root: Path) -> Backend:
    return choose.open_root(root, [root])


@pytest.fixture(params=["btrfs", "xfs", "ext4"])
def backend(request: pytest.FixtureRequest, make_root: MakeRoot) -> Backend:
    return open_root(make_root(request.param))


def ignore(_done: int, _total: int) -> None:
    """Takes progress and forgets it."""


def files(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def write_synced(path: Path, mebibytes: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(os.urandom(MIB))
            os.fsync(file.fileno())


def test_features_are_those_of_the_file_system(make_root: MakeRoot) -> None:
    """Btrfs enforces sizes and has snapshots, xfs has reflinks, ext4 without quota has none of it."""
    assert open_root(make_root("btrfs")).features == base.Features(quota=True, reflink=True, snapshot=True)
    assert open_root(make_root("xfs")).features == base.Features(quota=False, reflink=True, snapshot=False)
    assert open_root(make_root("ext4")).features == base.Features(quota=False, reflink=False, snapshot=False)


def test_create_grow_delete(backend: Backend) -> None:
    """A volume is made once, grows, never shrinks, and is gone at once when deleted."""
    backend.create("v1", 16 * MIB, None, ignore)
    (backend.path("volume", "v1") / "kept").write_bytes(b"kept")
    backend.create("v1", 16 * MIB, None, ignore)
    assert files(backend.path("volume", "v1")) == {"kept": b"kept"}
    backend.resize("v1", 32 * MIB)
    assert backend.usage("v1").total == 32 * MIB
    with pytest.raises(OutOfRange, match="cannot shrink"):
        backend.resize("v1", 16 * MIB)
    with pytest.raises(AlreadyExists, match="cannot shrink"):
        backend.create("v1", 16 * MIB, None, ignore)
    assert backend.volumes() == ["v1"]
    backend.delete("volume", "v1")
    backend.delete("volume", "v1")
    assert backend.volumes() == []
    backend.empty_trash()
    assert list((backend.root / "trash").iterdir()) == []


def test_snapshot_restore_and_clone(backend: Backend) -> None:
    """A snapshot keeps what the volume had; what is restored or cloned from it is a volume of its own."""
    backend.create("v1", 16 * MIB, None, ignore)
    source = backend.path("volume", "v1")
    (source / "a").write_bytes(b"before")
    os.link(source / "a", source / "b")
    os.setxattr(source / "a", "user.kept", b"yes")
    taken = backend.snapshot("v1", "s1", ignore)
    (source / "a").write_bytes(b"after")
    assert backend.snapshot("v1", "s1", ignore) == taken
    assert taken.size == 16 * MIB
    backend.create("v2", 32 * MIB, Source("snapshot", "s1"), ignore)
    backend.create("v3", 16 * MIB, Source("volume", "v1"), ignore)
    restored = backend.path("volume", "v2")
    assert files(restored) == {"a": b"before", "b": b"before"}
    assert (restored / "a").stat().st_ino == (restored / "b").stat().st_ino
    assert os.getxattr(restored / "a", "user.kept") == b"yes"
    assert files(backend.path("volume", "v3")) == {"a": b"after", "b": b"after"}
    (restored / "a").write_bytes(b"own")
    backend.delete("snapshot", "s1")
    backend.delete("volume", "v1")
    backend.empty_trash()
    assert files(restored) == {"a": b"own", "b": b"own"}


def test_a_copy_is_not_smaller_than_its_source(backend: Backend) -> None:
    """Restoring into less than the snapshot's size is refused, as is a source that is not there."""
    backend.create("v1", 16 * MIB, None, ignore)
    backend.snapshot("v1", "s1", ignore)
    with pytest.raises(OutOfRange, match="ask for at least as much"):
        backend.create("v2", 8 * MIB, Source("snapshot", "s1"), ignore)
    with pytest.raises(NotFound, match="no snapshot s2"):
        backend.create("v2", 8 * MIB, Source("snapshot", "s2"), ignore)


def test_promises_are_not_larger_than_the_file_system(backend: Backend) -> None:
    """A volume that does not fit beside the others is refused, and growth counts like a new volume."""
    room = backend.space().unpromised
    backend.create("v1", room // 2, None, ignore)
    with pytest.raises(Exhausted, match="ask for less"):
        backend.create("v2", room, None, ignore)
    with pytest.raises(Exhausted, match="ask for less"):
        backend.resize("v1", 2 * room)
    assert backend.space().allocated == room // 2


def test_unfinished_work_is_started_anew(backend: Backend) -> None:
    """What a killed process left half made is neither taken for a volume nor in the way."""
    backend.create("v1", 16 * MIB, None, ignore)
    backend._make(backend.root / "work" / "volume-v2")
    (backend.root / "work" / "volume-v2" / "half").write_bytes(b"half")
    assert backend.volumes() == ["v1"]
    backend.create("v2", 16 * MIB, Source("volume", "v1"), ignore)
    assert files(backend.path("volume", "v2")) == {}
    backend._make(backend.root / "work" / "volume-v3")
    open_root(backend.root)
    assert list((backend.root / "work").iterdir()) == []


def test_what_another_plugin_is_making_is_left_alone(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """During an upgrade two of them work on a data root: neither throws away nor repeats the other's work."""
    backend.create("v1", 16 * MIB, None, ignore)
    (backend.path("volume", "v1") / "file").write_bytes(b"data")
    real = backend._copy

    def copy(source: Path, path: Path, progress: base.Progress) -> None:
        real(source, path, progress)
        successor = open_root(backend.root)
        assert path.exists()
        with pytest.raises(Busy):
            successor.create("v2", 16 * MIB, Source("volume", "v1"), ignore)

    monkeypatch.setattr(backend, "_copy", copy)
    backend.create("v2", 16 * MIB, Source("volume", "v1"), ignore)
    assert files(backend.path("volume", "v2")) == {"file": b"data"}
    assert list((backend.root / "work").iterdir()) == []


def test_a_copy_that_fails_leaves_nothing(make_root: MakeRoot) -> None:
    """Not the half that found no room, and it says so; later there may be room."""
    backend = open_root(make_root("ext4"))
    backend.create("v1", 16 * MIB, None, ignore)
    file = backend.path("volume", "v1") / "file"
    file.write_bytes(os.urandom(128 * MIB))
    with pytest.raises(Exhausted, match="no room for a copy of v1"):
        backend.create("v2", 16 * MIB, Source("volume", "v1"), ignore)
    assert list((backend.root / "work").iterdir()) == []
    file.write_bytes(b"less")
    backend.create("v2", 16 * MIB, Source("volume", "v1"), ignore)
    assert files(backend.path("volume", "v2")) == {"file": b"less"}


def test_every_file_is_counted_once(tmp_path: Path) -> None:
    """Folders, files with several names, and links to folders."""
    (tmp_path / "folder/below").mkdir(parents=True)
    (tmp_path / "file").write_bytes(b"x" * 4096)
    os.link(tmp_path / "file", tmp_path / "folder/below/again")
    (tmp_path / "link").symlink_to("folder")
    everything = {
        path.lstat().st_ino: path.lstat().st_blocks * 512 for path in (tmp_path, *tmp_path.rglob("*"))
    }
    assert trees.count(tmp_path, 60) == (sum(everything.values()), len(everything), True)


def test_btrfs_holds_a_volume_to_its_size(make_root: MakeRoot) -> None:
    """Writing stops at the limit, goes on after growth, and the use is counted."""
    backend = open_root(make_root("btrfs"))
    backend.create("v1", 16 * MIB, None, ignore)
    path = backend.path("volume", "v1") / "data"
    with pytest.raises(OSError, match="quota"):
        write_synced(path, 64)
    assert 14 * MIB < path.stat().st_size <= 16 * MIB
    assert backend.last_used("v1") == 0
    assert 14 * MIB < backend.usage("v1").used <= 17 * MIB
    assert backend.last_used("v1") > 14 * MIB
    backend.resize("v1", 64 * MIB)
    with path.open("ab") as file:
        file.write(os.urandom(16 * MIB))
    assert path.stat().st_size > 30 * MIB


def test_a_real_copy_tells_its_progress(make_root: MakeRoot) -> None:
    """Where there is no reflink the bytes that were copied are told, and end at the total."""
    backend = open_root(make_root("ext4"))
    backend.create("v1", 64 * MIB, None, ignore)
    (backend.path("volume", "v1") / "data").write_bytes(os.urandom(32 * MIB))
    told: list[tuple[int, int]] = []
    backend.snapshot("v1", "s1", lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] >= 32 * MIB
    assert told == sorted(told)


def test_project_quota_is_set_by_the_tools_of_the_file_system(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are project quotas a volume gets a project and a limit; CI's kernel has none: a fake."""
    backend = open_root(make_root("ext4"))
    backend.features = base.Features(quota=True, reflink=False, snapshot=False)
    ran: list[list[str]] = []
    real = directory.run

    def run(*argv: str, timeout: float = 60) -> str:
        if argv[0] in ("chattr", "setquota"):
            ran.append(list(argv))
            return ""
        return real(*argv, timeout=timeout)

    monkeypatch.setattr(directory, "run", run)
    backend.create("v1", 10_000, None, ignore)
    project = str(directory.project_id("v1"))
    assert [argv[:-1] for argv in ran] == [
        ["chattr", "-p", project, "+P"],
        ["setquota", "-P", project, "0", "10", "0", "0"],
    ]
    assert ran[1][-1] == str(backend.root)


@given(st.text(min_size=1), st.text(min_size=1))
def test_project_ids_are_those_the_kernel_takes(name: str, other: str) -> None:
    """A project id is never 0, fits 31 bits, and a volume that is still in the making has the same."""
    assert 0 < directory.project_id(name) < 2**31
    if not name.startswith("volume-"):
        assert directory.project_id(f"volume-{name}") == directory.project_id(name)


def test_the_use_of_a_subvolume_is_read_from_its_own_line() -> None:
    """The table lists ancestors as well; one without the subvolume says how to turn quotas on."""
    shown = "qgroupid rfer excl\n-------- ---- ----\n0/5 16384 16384\n0/257 4096 1024\n"
    assert btrfs.parse_qgroup(shown, 257) == (4096, 1024)
    with pytest.raises(Exception, match="btrfs quota enable"):
        btrfs.parse_qgroup(shown, 258)


def test_a_root_that_the_plugin_does_not_see_is_explained(tmp_path: Path) -> None:
    """A data root outside of the folders that were mounted into the plugin names the value to change."""
    with pytest.raises(Precondition, match=r"csi\.node\.dataDirs"):
        choose.open_root(tmp_path / "elsewhere", [tmp_path / "data"])


def test_a_root_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """A link in the place of a data root could lead anywhere."""
    (tmp_path / "link").symlink_to("/var")
    with pytest.raises(Precondition, match="symbolic link"):
        choose.open_root(tmp_path / "link", [tmp_path])
