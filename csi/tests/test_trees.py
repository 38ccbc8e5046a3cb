"""Volumes whose owner means harm, or is only careless: what root does to them touches nothing else."""

import contextlib
import ctypes
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kube3fs_csi.backends import choose
from kube3fs_csi.backends.base import Backend, Source
from kube3fs_csi.node import trees
from kube3fs_csi.serving.errors import CsiError, Precondition, Unavailable

MIB = 1 << 20
SECRET = b"of another pod"
ROUNDS = int(os.environ.get("KUBE3FS_TREE_ROUNDS", "12"))
_RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[Backend]:
    (tmp_path / "root").mkdir()
    yield choose.open_root(tmp_path / "root", [tmp_path / "root"])
    # Python, and so pytest, cannot remove what some tests leave.
    assert trees.remove(tmp_path / "root", 60)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder of the node that only root may look into."""
    folder = tmp_path / "secret"
    folder.mkdir(mode=0o700)
    (folder / "token").write_bytes(SECRET)
    return folder


def ignore(_done: int, _total: int) -> None:
    """Takes progress and forgets it."""


def exchange(one: Path, other: Path) -> None:
    _libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _RENAME_EXCHANGE)


@contextlib.contextmanager
def meanwhile(change: Callable[[], None]) -> Iterator[None]:
    """Calls `change` again and again in a thread of its own."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            change()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def nest(top: Path, levels: int, name: str = "d") -> None:
    """Directories within one another: no path reaches the last of many."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


def flipping(volume: Path, secret: Path) -> Callable[[], None]:
    """Folders and files of a volume that change places with links to what is not the volume's."""
    pairs = []
    for number in range(3):
        folder, link = volume / f"a{number}", volume / f"b{number}"
        folder.mkdir()
        (folder / "token").write_bytes(b"mine")
        link.symlink_to(secret)
        pairs.append((folder, link))
    (volume / "file").write_bytes(b"mine")
    (volume / "to-file").symlink_to(secret / "token")
    pairs.append((volume / "file", volume / "to-file"))

    def flip() -> None:
        for one, other in pairs:
            exchange(one, other)

    return flip


def test_copies_of_a_volume_in_use_hold_nothing_of_the_node(backend: Backend, secret: Path) -> None:
    """A pod that exchanges folders and links while clones, snapshots and restores are made gets its own."""
    backend.create("v1", MIB, None, ignore)
    with meanwhile(flipping(backend.path("volume", "v1"), secret)):
        for number in range(ROUNDS):
            backend.create(f"clone{number}", MIB, Source("volume", "v1"), ignore)
            backend.snapshot("v1", f"s{number}", ignore)
            backend.create(f"restored{number}", MIB, Source("snapshot", f"s{number}"), ignore)
    for folder in ("volumes", "snapshots"):
        found = subprocess.run(["grep", "-rqF", SECRET.decode(), str(backend.root / folder)], check=False)
        assert found.returncode == 1


def test_nothing_of_the_node_is_removed_counted_or_handed_over(backend: Backend, secret: Path) -> None:
    """Not with the volume of a pod that still runs while its volume is deleted."""
    (secret / "large").write_bytes(bytes(8 * MIB))
    for number in range(ROUNDS):
        name = f"v{number}"
        backend.create(name, MIB, None, ignore)
        volume = backend.path("volume", name)
        # The pod still has the folder, as an open directory has it: by where it is now.
        handle = os.open(volume, os.O_RDONLY)
        with meanwhile(flipping(Path(f"/proc/self/fd/{handle}"), secret)):
            assert backend.usage(name).used < MIB
            trees.give_to_group(volume, 4000, lambda _met: None)
            backend.delete("volume", name)
            for _ in range(100):
                backend.empty_trash()
                if not list((backend.root / "trash").iterdir()):
                    break
        os.close(handle)
        backend.empty_trash()
        assert list((backend.root / "trash").iterdir()) == []
    assert (secret / "token").read_bytes() == SECRET
    assert {path.stat().st_gid for path in (secret, secret / "token")} == {0}


def test_no_shape_of_a_tree_keeps_the_plugin_from_starting(backend: Backend) -> None:
    """What was deleted or half made is not walked when a plugin starts, and all of it goes by and by."""
    for name in ("deep", "wide", "small"):
        backend.create(name, MIB, None, ignore)
    nest(backend.path("volume", "deep"), 1500)
    for number in range(1000):
        (backend.path("volume", "wide") / f"{number:0>240}").touch()
    half = backend.root / "work/volume-half"
    half.mkdir()
    nest(half, 1500, "n" * 200)
    for name in ("deep", "wide", "small"):
        backend.delete("volume", name)
    successor = choose.open_root(backend.root, [backend.root])
    assert list((backend.root / "work").iterdir()) == []
    assert len(list((backend.root / "trash").iterdir())) == 4
    while successor.empty_trash():
        pass
    assert list((backend.root / "trash").iterdir()) == []
    assert successor.trouble() == ""


def test_a_deep_volume_is_used_like_any_other(backend: Backend) -> None:
    """It is measured, cloned, snapshotted and handed over, and its clone is as deep."""
    backend.create("v1", MIB, None, ignore)
    nest(backend.path("volume", "v1"), 3000, "n" * 100)
    assert backend.usage("v1").inodes == 3001
    backend.snapshot("v1", "s1", ignore)
    backend.create("v2", MIB, Source("snapshot", "s1"), ignore)
    trees.give_to_group(backend.path("volume", "v2"), 4000, lambda _met: None)
    assert backend.usage("v2").inodes == 3001


def test_what_cannot_be_removed_is_told_and_stops_nothing_else(backend: Backend) -> None:
    """The report of the node names the deleted volume and what is wrong with it; the others are gone."""
    for name in ("v1", "v2", "v3"):
        backend.create(name, MIB, None, ignore)
        (backend.path("volume", name) / "file").write_bytes(b"x")
    kept = backend.path("volume", "v2") / "file"
    subprocess.run(["chattr", "+i", str(kept)], check=True)
    for name in ("v1", "v2", "v3"):
        backend.delete("volume", name)
    backend.empty_trash()
    (left,) = (backend.root / "trash").iterdir()
    assert left.name.startswith("v2.")
    assert "1 deleted volumes" in backend.trouble()
    assert "Operation not permitted" in backend.trouble()
    subprocess.run(["chattr", "-i", str(left / "file")], check=True)
    backend.empty_trash()
    assert backend.trouble() == ""


def test_a_walk_that_stands_still_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that hangs, or a program that ends before it is done, is said to be just that."""
    program = tmp_path / "kube3fs-tree"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for script, kind, words in (
        ("exec tail -f /dev/null", Unavailable, "its disk hangs"),
        ("exit 9", CsiError, "ended with status 9 before it was done"),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(trees, "STALLED_SECONDS", 0.5 if kind is Unavailable else 20)
        with pytest.raises(kind, match=words):
            trees.count(tmp_path, 60)


def test_a_tree_that_is_too_deep_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Handing it over is refused with a sentence, and not as a defect of the driver."""
    program = tmp_path / "kube3fs-tree"
    program.write_text(
        '#!/bin/sh\necho \'{"errno":40,"error":"going down more than 32768 directories"}\'\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Precondition, match="32768 directories"):
        trees.give_to_group(tmp_path, 4000, lambda _met: None)


_STEPS = st.lists(st.tuples(st.sampled_from("mrxlfn"), st.integers(0, 30), st.integers(0, 30)), max_size=60)


def apply(top: Path, secret: Path, step: tuple[str, int, int]) -> None:
    """One change of a tree as its owner may make it. What cannot be does not matter."""
    what, one, other = step
    at, to = (top / "/".join(format(number, "b")) for number in (one, other))
    with contextlib.suppress(OSError):
        if what == "m":
            at.mkdir(parents=True)
        elif what == "r":
            at.rename(to)
        elif what == "x":
            exchange(at, to)
        elif what == "l":
            at.symlink_to(secret)
        elif what == "f":
            at.write_bytes(b"mine")
        else:
            os.link(at, to, follow_symlinks=False)


@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=_STEPS, changes=_STEPS.filter(bool))
def test_random_trees_that_change_under_way(
    tmp_path: Path, secret: Path, before: list[tuple[str, int, int]], changes: list[tuple[str, int, int]]
) -> None:
    """Whatever its owner does, a copy ends and holds only the tree's own, and so does its removal."""
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
    try:
        for step in before:
            apply(source, secret, step)
        turn = iter(range(1 << 40))
        with meanwhile(lambda: apply(source, secret, changes[next(turn) % len(changes)])):
            trees.copy(source, target, ignore)
            trees.count(source, 60)
        for path in target.rglob("*"):
            # Zeros: it was truncated while it was copied.
            assert path.is_symlink() or path.is_dir() or path.read_bytes().strip(b"\0") in (b"mine", b"")
        with meanwhile(lambda: apply(target, secret, changes[next(turn) % len(changes)])):
            trees.give_to_group(target, 4000, lambda _met: None)
            with contextlib.suppress(OSError, trees.TreeFailed):  # a name came after all else was gone
                trees.remove(target, 1)
        assert (secret / "token").read_bytes() == SECRET
        assert (secret / "token").stat().st_gid == 0
    finally:
        # Changes that go round may nest more folders than Python, and so pytest, can remove.
        for folder in (source, target):
            assert trees.remove(folder, 60)
