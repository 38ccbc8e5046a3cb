"""`usrbio cp`: a parallel copy through rings."""

import argparse
import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import usrbio
from usrbio.cli._common import add_command, byte_count, human, positive

if TYPE_CHECKING:
    from usrbio.cli._common import Commands

_EXAMPLES = """  usrbio cp /mnt/data/train.bin /scratch/
  usrbio cp -r /scratch/set /mnt/data
  usrbio cp a.bin b.bin c.bin /mnt/data/ --block 4M
"""


def add_to(commands: "Commands") -> None:
    """Adds the command."""
    parser = add_command(
        commands, "cp", "copy files to, from or within a USRBIO mount, many blocks at a time", _EXAMPLES
    )
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="what to copy")
    parser.add_argument("target", metavar="TARGET", help="where to; a directory if there are several sources")
    parser.add_argument("-r", "--recursive", action="store_true", help="copy directories and what they hold")
    parser.add_argument(
        "--block", type=byte_count, default=1 << 20, metavar="BYTES", help="moved at once (1M)"
    )
    parser.add_argument("--depth", type=positive, default=16, metavar="N", help="blocks in flight (16)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Copies."""
    jobs = [job for source in args.source for job in plan(Path(source), Path(args.target), args)]
    total = sum(job.size for job in jobs if job.size is not None)
    progress = _Progress(total, sys.stderr.isatty() and not args.quiet)
    with contextlib.ExitStack() as stack:
        copier = _Copier(args.block, args.depth, progress, stack)
        for job in jobs:
            if job.size is None:
                job.target.mkdir(exist_ok=True)
            else:
                copier.copy(job.source, job.target)
    progress.end()
    return 0


@dataclass
class Job:
    """A file to copy, or a directory to make."""

    source: Path
    target: Path
    size: int | None
    """Bytes; None for a directory."""


def plan(source: Path, target: Path, args: argparse.Namespace) -> Iterator[Job]:
    """What copying `source` takes, directories before what they hold."""
    if target.is_dir():
        target = target / source.name
    elif len(args.source) > 1:
        raise NotADirectoryError(errno.ENOTDIR, "several sources need a directory to go to", str(target))
    status = source.stat()
    if stat.S_ISREG(status.st_mode):
        if target.exists() and target.samefile(source):
            raise OSError(errno.EINVAL, "source and target are the same file", str(source))
        yield Job(source, target, status.st_size)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "neither a file nor a directory: it is not copied", str(source))
    if not args.recursive:
        raise IsADirectoryError(errno.EISDIR, "is a directory: give -r to copy it", str(source))
    if target.resolve().is_relative_to(source.resolve()):
        raise OSError(errno.EINVAL, f"a directory cannot be copied into itself ({target})", str(source))
    yield from _tree(source, target)


def _tree(source: Path, target: Path) -> Iterator[Job]:
    yield Job(source, target, None)
    for entry in sorted(source.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _tree(entry, target / entry.name)
        elif entry.is_file():
            yield Job(entry, target / entry.name, entry.stat().st_size)
        else:
            raise OSError(errno.EINVAL, "neither a file nor a directory: it is not copied", str(entry))


class _Side(Protocol):
    """A file that blocks come from or go to."""

    def move(self, offsets: list[int], lengths: list[int], places: list[int]) -> list[int]:
        """Moves blocks between the file and the Iov; bytes moved of each."""
        ...


class _RingSide:
    """On the mount: one call for all blocks."""

    def __init__(self, ring: usrbio.Ring, file: usrbio.File, iov: usrbio.Iov, *, read: bool) -> None:
        self._move = ring.read if read else ring.write
        self._file = file
        self._iov = iov

    def move(self, offsets: list[int], lengths: list[int], places: list[int]) -> list[int]:
        return list(self._move(self._file, offsets, lengths, self._iov, places))


class _PlainSide:
    """Elsewhere: system calls, straight into or out of the Iov."""

    def __init__(self, fd: int, iov: usrbio.Iov, *, read: bool) -> None:
        self._fd = fd
        self._memory = memoryview(iov)
        self._read = read

    def move(self, offsets: list[int], lengths: list[int], places: list[int]) -> list[int]:
        return [self._one(*block) for block in zip(offsets, lengths, places, strict=True)]

    def _one(self, offset: int, length: int, place: int) -> int:
        done = 0
        while done < length:
            rest = [self._memory[place + done : place + length]]
            call = os.preadv if self._read else os.pwritev
            count = call(self._fd, rest, offset + done)
            if count == 0:
                break
            done += count
        return done


class _Copier:
    """Copies files one after another. Each mount's rings and Iov are made once."""

    def __init__(self, block: int, depth: int, progress: "_Progress", stack: contextlib.ExitStack) -> None:
        self._block = block
        self._depth = depth
        self._progress = progress
        self._stack = stack
        self._rings: dict[tuple[int, bool], usrbio.Ring] = {}
        self._iovs: dict[int, usrbio.Iov] = {}

    def copy(self, source: Path, target: Path) -> None:
        """Copies a file with its mode. Under another name until it is whole: nobody sees half of it."""
        half = target.with_name(f".{target.name}.usrbio-cp-{os.getpid()}")
        with source.open("rb") as reading:
            status = os.fstat(reading.fileno())
            try:
                with half.open("xb") as writing:
                    self._blocks(reading.fileno(), writing.fileno(), source, target.parent, status.st_size)
                    os.truncate(writing.fileno(), status.st_size)
                    os.fchmod(writing.fileno(), stat.S_IMODE(status.st_mode))
                half.replace(target)
            except BaseException:
                half.unlink(missing_ok=True)
                raise

    def _blocks(self, reading: int, writing: int, source: Path, target: Path, size: int) -> None:
        reader, writer = self._sides(reading, writing, source, target)
        step = self._block * self._depth
        for start in range(0, size, step):
            offsets = list(range(start, min(start + step, size), self._block))
            lengths = [min(self._block, size - offset) for offset in offsets]
            places = [offset - start for offset in offsets]
            got = reader.move(offsets, lengths, places)
            # A read ends early at a hole that reaches the block's end: the target gets a hole there, too.
            parts = [part for part in zip(offsets, got, places, strict=True) if part[1] > 0]
            if parts:
                writer.move(*map(list, zip(*parts, strict=True)))
            self._progress.add(sum(lengths))

    def _sides(self, reading: int, writing: int, source: Path, target: Path) -> tuple[_Side, _Side]:
        """The mount's file goes through a ring. Between two mounts, the source's does."""
        mount = _mount(source) or _mount(target)
        if mount is None:
            raise OSError(errno.ENODEV, f"is on no USRBIO mount, and {target} neither: use cp", str(source))
        iov = self._iovs.get(mount.device)
        if iov is None:
            iov = self._stack.enter_context(usrbio.Iov(mount, self._block * self._depth))
            self._iovs[mount.device] = iov

        def side(fd: int, read: bool) -> _Side:
            if os.fstat(fd).st_dev != mount.device:
                return _PlainSide(fd, iov, read=read)
            return _RingSide(self._ring(mount, read), usrbio.File(fd), iov, read=read)

        return side(reading, True), side(writing, False)

    def _ring(self, mount: usrbio.Mount, read: bool) -> usrbio.Ring:
        key = (mount.device, read)
        if key not in self._rings:
            self._rings[key] = self._stack.enter_context(usrbio.Ring(mount, self._depth, read=read))
        return self._rings[key]


def _mount(path: Path) -> usrbio.Mount | None:
    try:
        return usrbio.Mount(path)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


class _Progress:
    """A bar on stderr, if somebody looks."""

    def __init__(self, total: int, shown: bool) -> None:
        self._total = total
        self._shown = shown
        self._done = 0
        self._start = time.monotonic()
        self._drawn = 0.0

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        if self._shown and time.monotonic() - self._drawn > 0.1:
            self._draw()

    def end(self) -> None:
        """All is done."""
        if self._shown:
            self._draw()
            sys.stderr.write("\n")

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        share = self._done / self._total if self._total else 1.0
        rate = self._done / max(self._drawn - self._start, 1e-3)
        bar = "#" * int(share * 30)
        sys.stderr.write(f"\r{share:4.0%} [{bar:30}] {human(self._done)}, {human(rate)}/s   ")
        sys.stderr.flush()
