"""What a file system has left for new volumes: nothing is promised twice, whoever asks, wherever."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kube3fs_csi.backends import choose
from kube3fs_csi.backends.base import Backend, Source
from kube3fs_csi.serving.errors import Exhausted

MIB = 1 << 20
MakeRoot = Callable[[str], Path]
FILE_SYSTEMS = ["btrfs", "xfs", "ext4"]


def ignore(_done: int, _total: int) -> None:
    """Takes progress and forgets it."""


def cluster(root: Path, name: str) -> Backend:
    return choose.open_root(root / name, [root])


def fill(path: Path, mebibytes: int) -> None:
    with path.open("wb", buffering=0) as file:
        for _ in range(mebibytes):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    os.sync()


def third(backend: Backend) -> int:
    """A size of which two fit, and three do not."""
    return backend.space().unpromised * 3 // 8


@pytest.mark.parametrize("fstype", FILE_SYSTEMS)
def test_promises_that_are_not_used_yet_count(make_root: MakeRoot, fstype: str) -> None:
    """Of three volumes of which two fit only two are made; one that is deleted gives its promise back."""
    backend = cluster(make_root(fstype), "one")
    size = third(backend)
    backend.create("a", size, None, ignore)
    backend.create("b", size, None, ignore)
    with pytest.raises(Exhausted, match="promised to volumes that have not used them yet"):
        backend.create("c", size, None, ignore)
    with pytest.raises(Exhausted):
        backend.resize("a", size * 2)
    backend.delete("volume", "a")
    backend.empty_trash()
    backend.create("c", size, None, ignore)


def test_clusters_of_one_file_system_take_room_from_each_other(make_root: MakeRoot) -> None:
    """Their folders are apart; what is free is the same."""
    root = make_root("ext4")
    one, other = cluster(root, "one"), cluster(root, "other")
    size = third(one)
    one.create("a", size, None, ignore)
    other.create("b", size, None, ignore)
    for backend in (one, other):
        with pytest.raises(Exhausted):
            backend.create("c", size, None, ignore)
    assert one.space().unpromised == other.space().unpromised


def test_a_file_system_of_its_own_is_not_concerned(make_root: MakeRoot) -> None:
    """Another disk's promises are its own."""
    one, other = cluster(make_root("ext4"), "one"), cluster(make_root("xfs"), "other")
    one.create("a", third(one), None, ignore)
    assert one.space().reserved == one.space().allocated > 0
    assert other.space().reserved == 0


@pytest.mark.parametrize("fstype", FILE_SYSTEMS)
def test_what_a_volume_uses_is_not_counted_twice(make_root: MakeRoot, fstype: str) -> None:
    """Used bytes are not free any more, so that the promise of them is kept; also after a restart."""
    root = make_root(fstype)
    backend = cluster(root, "one")
    backend.create("a", 100 * MIB, None, ignore)
    before = backend.space().unpromised
    fill(backend.path("volume", "a") / "file", 60)
    assert backend.space().unpromised < before - 50 * MIB  # nobody has looked
    backend.usage("a")
    assert abs(backend.space().unpromised - before) < 8 * MIB
    again = cluster(root, "one")
    assert again.space().reserved == backend.space().reserved == pytest.approx(40 * MIB, abs=2 * MIB)


def test_volumes_that_nobody_measured_are_measured_in_the_background(make_root: MakeRoot) -> None:
    """Those of an earlier version, and those that somebody may have changed since."""
    backend = cluster(make_root("ext4"), "one")
    for name in ("a", "b"):
        backend.create(name, 64 * MIB, None, ignore)
        fill(backend.path("volume", name) / "file", 40)
    before = backend.space().reserved
    backend.measure_some(60)
    assert backend.space().reserved < before - 70 * MIB
    (backend.path("volume", "a") / "file").unlink()
    backend.measure_soon("a")
    backend.measure_soon("gone")
    backend.measure_some(60)
    assert before - 50 * MIB < backend.space().reserved < before - 30 * MIB


@pytest.mark.parametrize("fstype", ["btrfs", "xfs"])
def test_what_copies_share_counts_as_not_used(make_root: MakeRoot, fstype: str) -> None:
    """Shared blocks are written anew by whoever changes them: both may still take all they were promised."""
    backend = cluster(make_root(fstype), "one")
    backend.create("a", 64 * MIB, None, ignore)
    fill(backend.path("volume", "a") / "file", 40)
    backend.usage("a")
    backend.create("b", 64 * MIB, Source("volume", "a"), ignore)
    os.sync()
    backend.measure_some(60)
    assert backend.space().reserved > 120 * MIB


def test_a_full_volume_is_measured_all_the_same(make_root: MakeRoot) -> None:
    """It may have no room for a note of what it uses."""
    backend = cluster(make_root("btrfs"), "one")
    backend.create("a", 16 * MIB, None, ignore)
    with pytest.raises(OSError, match="quota"):
        fill(backend.path("volume", "a") / "file", 64)
    os.sync()
    backend.usage("a")
    assert backend.space().reserved < 2 * MIB


def test_only_a_thin_cluster_promises_more_than_there_is(make_root: MakeRoot) -> None:
    """Never what volumes of others were promised firmly, and none of it keeps room from them."""
    root = make_root("ext4")
    thick, thin = cluster(root, "thick"), cluster(root, "thin")
    thin.thin = True
    size = third(thick)
    thick.create("a", size, None, ignore)
    for name in ("b", "c", "d"):
        thin.create(name, size, None, ignore)
    assert 0 < thin.space().unpromised < 2 * size
    with pytest.raises(Exhausted):
        thin.create("e", size * 2, None, ignore)
    thick.create("f", size, None, ignore)
    with pytest.raises(Exhausted):
        thick.create("g", size, None, ignore)


def test_two_at_once_do_not_get_the_same_room(make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one is being made, the other is judged with its promise counted; in another cluster, too."""
    root = make_root("ext4")
    one, other = cluster(root, "one"), cluster(root, "other")
    size = third(one) * 3 // 2
    making, go_on = threading.Event(), threading.Event()
    make = one._make

    def slowly(path: Path) -> None:
        making.set()
        assert go_on.wait(20)
        make(path)

    monkeypatch.setattr(one, "_make", slowly)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(one.create, "a", size, None, ignore)
        assert making.wait(20)
        with pytest.raises(Exhausted):
            other.create("b", size, None, ignore)
        go_on.set()
        first.result(20)
    assert other.space().unpromised < size


def test_a_making_that_fails_gives_its_promise_back(
    make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one gets the room."""
    backend = cluster(make_root("ext4"), "one")

    def fail(*_: Any) -> None:
        raise OSError(5, "the disk says no")

    before = backend.space()
    with monkeypatch.context() as patch:
        patch.setattr(backend, "_make", fail)
        with pytest.raises(OSError, match="says no"):
            backend.create("a", third(backend), None, ignore)
    assert backend.space() == before


def test_a_broken_neighbour_takes_no_room(make_root: MakeRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data root that cannot be read says nothing of the others."""
    root = make_root("ext4")
    one, other = cluster(root, "one"), cluster(root, "other")

    def fail() -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(other, "reserved_here", fail)
    one.create("a", third(one), None, ignore)


@pytest.mark.parametrize("left", ["volumes/a", "snapshots/b", "trash/c", "other"])
def test_folders_of_a_cluster_that_is_gone_go_when_they_are_empty(make_root: MakeRoot, left: str) -> None:
    """Whatever is still in one of them keeps them; what is beside them keeps the data root."""
    backend = cluster(make_root("ext4"), "one")
    (backend.root / left).mkdir()
    backend.remove_empty(whole=True)
    assert (backend.root / left).is_dir()
    assert (backend.root / "volumes").is_dir() is (left != "other")
    (backend.root / left).rmdir()
    backend.prepare()
    backend.remove_empty(whole=False)
    assert list(backend.root.iterdir()) == []
    backend.prepare()
    backend.remove_empty(whole=True)
    assert not backend.root.exists()
