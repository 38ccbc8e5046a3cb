"""The back-end interface, and all of it that does not depend on the file system.

A data root is laid out as

    ROOT/volumes/ID       what usrbiod serves as the volume ID
    ROOT/snapshots/ID     the snapshot ID; no pod can reach it, nothing writes it again
    ROOT/work/KIND-ID     something that is being made; renamed to its place when it is whole. KIND-ID.lock
                          is locked (flock(2)) meanwhile: during an upgrade two plugins work here
    ROOT/trash/ID.NNNN    something that was deleted; emptied in the background

so that a step that was cut off is either seen as done or started anew. The size of a volume, what it was seen
to use, and the time of a snapshot are extended attributes of its directory, in the namespace that only the
node's root can see.

All methods block; callers run them in a thread. None may be called twice at once for the same id.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from kube3fs_csi.backends.room import file_system
from kube3fs_csi.node import mounts, trees
from kube3fs_csi.serving.errors import (
    AlreadyExists,
    Busy,
    CsiError,
    Exhausted,
    NotFound,
    OutOfRange,
    Precondition,
)

log = logging.getLogger(__name__)

Kind = Literal["volume", "snapshot"]
Progress = Callable[[int, int], None]
"""Told the bytes that were copied and the bytes there are to copy."""

_LAYOUT = ("volumes", "snapshots", "work", "trash")
_CAPACITY = "trusted.kube3fs.capacity"
_CREATED = "trusted.kube3fs.created"
_USED = "trusted.kube3fs.used"
"""Bytes that are the volume's alone, as they were last measured: so much of its promise is kept."""
_USED_STEP = 16 << 20
"""A change by less is not worth a write."""


_SLICE_SECONDS = 5
"""How long one deleted volume is worked on before the next has its turn: a huge one holds up no others."""


class Source(NamedTuple):
    """What a new volume starts as a copy of."""

    kind: Kind
    id: str


class Features(NamedTuple):
    """What a data root can do. Without `snapshot` a copy is made file by file, while pods may write."""

    quota: bool
    reflink: bool
    snapshot: bool


class DataMissing(Precondition):
    """What was made is not there. Its disk may come back: it must not be made again, empty."""


class Usage(NamedTuple):
    """Bytes and inodes of a volume. `inodes` is how many there are; `inodes_total` 0 means no limit."""

    total: int
    used: int
    inodes_total: int
    inodes: int
    owned: int
    """Of the bytes used, those that no copy or snapshot shares, as far as that is known."""


class Space(NamedTuple):
    """Bytes of a data root: all, what the file system has left, and what volumes were promised.

    `reserved` is what volumes of every data root on the file system were promised and do not use yet.
    """

    capacity: int
    available: int
    allocated: int
    volumes: int
    reserved: int

    @property
    def unpromised(self) -> int:
        """What a new volume may be promised."""
        return max(0, self.available - self.reserved)


class Snapshot(NamedTuple):
    """A finished snapshot: when it was made (Unix time) and what a volume restored from it needs at least."""

    created: float
    size: int


class Backend(ABC):
    """Volumes and snapshots below one directory."""

    name: Literal["btrfs", "directory"]

    def __init__(self, root: Path, features: Features) -> None:
        self.root = root
        self.features = features
        self.thin = False
        """Volumes may be promised room that others were promised, too."""
        self.file_system = file_system(mounts.mount_of(root).device)
        self.file_system.add(root, self)
        self._stuck: dict[str, str] = {}
        """What is in the trash and cannot be removed, and why."""
        self._last_used: dict[str, int] = {}
        self._promising: dict[str, int] = {}
        """Bytes for what is being made or grown now."""
        self._owned: dict[str, int] = {}
        self._to_measure: set[str] = set()

    def prepare(self) -> None:
        """Makes the layout, and throws away what was being made when the last process died. Walks no tree."""
        for folder in _LAYOUT:
            path = self.root / folder
            path.mkdir(mode=0o700, exist_ok=True)
        for unfinished in {path.with_suffix("") for path in (self.root / "work").iterdir()}:
            with contextlib.suppress(Busy), _alone(unfinished):
                self._throw_away(unfinished)

    def path(self, kind: Kind, name: str) -> Path:
        """Where the volume or snapshot `name` is, if it is."""
        return self.root / f"{kind}s" / name

    def volumes(self) -> list[str]:
        """Ids of all volumes."""
        return sorted(path.name for path in (self.root / "volumes").iterdir())

    def create(self, name: str, capacity: int, source: Source | None, progress: Progress) -> None:
        """Makes the volume, empty or as a copy of `source`. One that is there already is not made again."""
        final = self.path("volume", name)
        if not final.exists():
            if source is not None and self._smallest_copy(source) > capacity:
                raise OutOfRange(
                    f"a copy of {source.kind} {source.id} needs {self._smallest_copy(source)} bytes, "
                    f"{capacity} were asked for; ask for at least as much"
                )
            with self._promise(name, capacity), self._making("volume", name) as work:
                if source is None:
                    self._make(work)
                    work.chmod(0o755)
                else:
                    self._copy(self.existing(source.kind, source.id), work, progress)
                    _forget(work, _USED)
                    self.measure_soon(source.id)
                self._finish(work, final, {_CAPACITY: str(capacity)}, capacity)
            self.measure_soon(name)
        have = self.capacity(name)
        if have > capacity:
            raise AlreadyExists(
                f"volume {name} has {have} bytes already, and volumes cannot shrink to {capacity}"
            )
        if have < capacity:
            self.resize(name, capacity)

    def resize(self, name: str, capacity: int) -> None:
        """Lets the volume grow to `capacity` bytes. It never shrinks."""
        path = self.existing("volume", name)
        have = self.capacity(name)
        if capacity < have:
            raise OutOfRange(f"volume {name} has {have} bytes and cannot shrink to {capacity}; ask for more")
        if capacity > have:
            with self._promise(name, capacity - have):
                self._limit(path, capacity)
                os.setxattr(path, _CAPACITY, str(capacity).encode())

    def snapshot(self, volume: str, name: str, progress: Progress) -> Snapshot:
        """Makes the read-only copy `name` of `volume`, or finds it."""
        final = self.path("snapshot", name)
        if not final.exists():
            source = self.existing("volume", volume)
            with self._making("snapshot", name) as work:
                created, capacity = time.time(), self.capacity(volume)
                self._copy(source, work, progress)
                self._finish(work, final, {_CREATED: str(created), _CAPACITY: str(capacity)}, None)
            self.measure_soon(volume)
        return Snapshot(float(os.getxattr(final, _CREATED)), int(os.getxattr(final, _CAPACITY)))

    def delete(self, kind: Kind, name: str) -> None:
        """Takes the volume or snapshot away at once, and frees its space by and by (`empty_trash`)."""
        if kind == "volume":
            self._last_used.pop(name, None)
            self._owned.pop(name, None)
        self._throw_away(self.path(kind, name))

    def empty_trash(self) -> bool:
        """Frees what was deleted, a little of each. True: there is more to do, at once.

        What cannot be removed stays for the next time, and `trouble` says why.
        """
        more, stuck = False, {}
        for path in self._trash():
            try:
                more |= not self._discard(path)
            except (OSError, CsiError) as error:
                log.warning("cannot empty %s yet: %s", path, error)
                stuck[path.name] = str(error)
        self._stuck = stuck
        return more

    def trouble(self) -> str:
        """What an administrator should look at although volumes can be made and used, or ''."""
        if not self._stuck:
            return ""
        name, why = next(iter(self._stuck.items()))
        return f"{len(self._stuck)} deleted volumes cannot be removed and keep their room: {name}: {why}"

    def _throw_away(self, path: Path) -> Path:
        """Moves a tree of ours to the trash, if it is there, and says where it is then."""
        thrown = self.root / "trash" / f"{path.name}.{secrets.token_hex(4)}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(thrown)
        return thrown

    def remove_empty(self, *, whole: bool) -> None:
        """Removes the layout if nothing is in it, and if it is `whole` the data root, if that is empty."""
        folders = [self.root / folder for folder in _LAYOUT]
        try:
            if any(any(folder.iterdir()) for folder in folders):
                return
            for folder in (*folders, *([self.root] if whole else [])):
                folder.rmdir()
        except OSError as error:  # a mount point, or somebody has put something there
            log.info("%s is left as it is: %s", self.root, error)

    def _trash(self) -> list[Path]:
        try:
            return list((self.root / "trash").iterdir())
        except OSError as error:
            log.warning("cannot look for what was deleted: %s", error)
            return []

    def capacity(self, name: str) -> int:
        """Bytes that the volume was promised."""
        return int(os.getxattr(self.existing("volume", name), _CAPACITY))

    def space(self) -> Space:
        """What the data root has, and has promised."""
        stat = os.statvfs(self.root)
        volumes = self.volumes()
        allocated = sum(self._promised(volume) for volume in volumes)
        return Space(
            stat.f_blocks * stat.f_frsize,
            stat.f_bavail * stat.f_frsize,
            allocated,
            len(volumes),
            self.file_system.reserved(),
        )

    def reserved_here(self) -> int:
        """See `room.Root`."""
        return sum(self._promising.copy().values()) + sum(map(self._unkept, self.volumes()))

    def usage(self, name: str) -> Usage:
        """What the volume has and uses. Looks at the data root, never through the mount."""
        measured = self._measure(name)
        self._last_used[name] = measured.used
        self._to_measure.discard(name)
        path = self.existing("volume", name)
        self._owned[name] = measured.owned
        before = _number(path, _USED)
        if before is None or abs(before - measured.owned) >= _USED_STEP:
            with contextlib.suppress(
                OSError
            ):  # a full volume has no room for it: then it is known till a restart
                os.setxattr(path, _USED, str(measured.owned).encode())
        return measured

    def measure_soon(self, name: str) -> None:
        """Says that what the volume uses is not what was measured last."""
        self._to_measure.add(name)

    def measure_some(self, seconds: float) -> None:
        """Measures volumes of which it is not known what they use, until `seconds` have passed."""
        end = time.monotonic() + seconds
        volumes = self.volumes()
        self._to_measure.intersection_update(volumes)
        unknown = [name for name in volumes if self._used_alone(name) is None]
        for name in dict.fromkeys((*unknown, *self._to_measure)):
            if time.monotonic() >= end:
                return
            try:
                self.usage(name)
            except (OSError, CsiError) as error:
                log.warning("cannot measure %s yet: %s", name, error)

    def last_used(self, name: str) -> int:
        """Bytes that `usage` found in use last, at no cost; 0 if nobody has asked yet."""
        return self._last_used.get(name, 0)

    def is_measured(self, name: str) -> bool:
        """Whether `usage` was asked, by this process."""
        return name in self._last_used

    @abstractmethod
    def _measure(self, name: str) -> Usage:
        """See `usage`."""

    @abstractmethod
    def _make(self, path: Path) -> None:
        """Makes an empty volume at `path`."""

    @abstractmethod
    def _copy(self, source: Path, path: Path, progress: Progress) -> None:
        """Makes a writable copy of `source` at `path`."""

    @abstractmethod
    def _limit(self, path: Path, capacity: int) -> None:
        """Has the file system hold the volume at `path` to `capacity` bytes, where it can."""

    @abstractmethod
    def _discard(self, path: Path) -> bool:
        """Removes a volume, snapshot or what was to become one. False: it takes longer; call again."""

    @abstractmethod
    def _sync(self, path: Path) -> None:
        """Returns when all of `path` would survive a power cut."""

    def _finish(self, work: Path, final: Path, attributes: dict[str, str], capacity: int | None) -> None:
        for key, value in attributes.items():
            os.setxattr(work, key, value.encode())
        if capacity is not None:
            self._limit(work, capacity)
        self._sync(work)
        work.rename(final)
        folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _making(self, kind: Kind, name: str) -> Iterator[Path]:
        """Where to make something. Busy if somebody does already; after an error nothing is left of it."""
        work = self.root / "work" / f"{kind}-{name}"
        with _alone(work):
            if self.path(kind, name).exists():  # since the caller looked
                raise Busy(work.name)
            self._throw_away(work)
            try:
                yield work
            except BaseException:
                thrown = self._throw_away(work)
                try:
                    while thrown.exists() and not self._discard(thrown):
                        log.info("%s is being removed", thrown)
                except (OSError, CsiError) as error:
                    log.warning("cannot empty %s yet: %s", thrown, error)
                raise

    def existing(self, kind: Kind, name: str) -> Path:
        """Where the volume or snapshot `name` is; NotFound if it is not."""
        path = self.path(kind, name)
        if not path.exists():
            raise NotFound(f"there is no {kind} {name} in {self.root}")
        return path

    def _smallest_copy(self, source: Source) -> int:
        return int(os.getxattr(self.existing(source.kind, source.id), _CAPACITY))

    def _promised(self, volume: str) -> int:
        try:
            return self.capacity(volume)
        except (NotFound, OSError) as error:  # deleted meanwhile, or put there by somebody else
            if isinstance(error, OSError) and error.errno != errno.ENODATA:
                raise
            return 0

    def _unkept(self, volume: str) -> int:
        """Bytes of the promise that the volume does not use yet."""
        return max(0, self._promised(volume) - (self._used_alone(volume) or 0))

    def _used_alone(self, volume: str) -> int | None:
        """Bytes that are the volume's alone, as they were measured last; None if they never were."""
        known = self._owned.get(volume)
        return known if known is not None else _number(self.path("volume", volume), _USED)

    @contextlib.contextmanager
    def _promise(self, name: str, more: int) -> Iterator[None]:
        """Holds `more` bytes for a volume until its attributes say so, or it has failed."""
        with self.file_system.lock:
            space = self.space()
            if more > space.unpromised:
                raise Exhausted(
                    f"the file system of {self.root} has {space.unpromised} bytes for new volumes, {more} "
                    f"were asked for: {space.available} are free, and {space.reserved} of these were "
                    "promised to volumes that have not used them yet; ask for less, delete volumes or give "
                    "the data root a larger file system"
                )
            self._promising[name] = more
        try:
            yield
        finally:
            del self._promising[name]


def _forget(path: Path, attribute: str) -> None:
    try:
        os.removexattr(path, attribute)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def _number(path: Path, attribute: str) -> int | None:
    """The value of an attribute; None if it has none, or is not there."""
    try:
        return int(os.getxattr(path, attribute))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.ENOENT):
            return None
        raise


@contextlib.contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Holds the lock of what is made at `work`, or raises Busy."""
    path = work.with_suffix(".lock")  # ids have no dots
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(work.name) from error
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def remove_tree(path: Path) -> bool:
    """Removes a tree, or a part of it. False: there is more."""
    return trees.remove(path, _SLICE_SECONDS)
