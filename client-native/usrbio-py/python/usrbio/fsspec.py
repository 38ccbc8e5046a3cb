"""The file system ``usrbio://`` for whatever reads through fsspec: pandas, pyarrow, zarr, ...

    import fsspec

    with fsspec.open("usrbio:///mnt/data/train.bin") as file:
        head = file.read(4096)

It is the local file system on a USRBIO mount; what it reads goes through a ring. Threads share a bounded
number of rings and at most 64 MiB of shared memory; where there is too little for any, files are read
through the mount.
`UsrbioFileSystem.cat_ranges`, which zarr and others call with many ranges, is one batch.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from typing import Any, NamedTuple

# fsspec has no type hints.
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped]

from usrbio._files import File
from usrbio._pool import Pools, Tool

_DEPTH = 64
"""Reads in one batch."""

_BLOCK = 256 << 10
"""A longer range is read in pieces of this size."""


class UsrbioFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Files of USRBIO mounts, by their absolute paths. Threads may share one, and so may forked processes.

    Writing, listing and the rest are the local file system's: through the mount, as any program's.
    """

    protocol = "usrbio"
    root_marker = "/"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._reader = _Reader()

    @classmethod
    def _strip_protocol(cls, path: str | os.PathLike[str]) -> str:
        path = os.fspath(path)
        if path.startswith("usrbio:"):
            # Paths are absolute: tools that keep URLs as paths leave two slashes of the three, or one.
            path = "/" + path.removeprefix("usrbio:").lstrip("/")
        return str(super()._strip_protocol(path))

    def unstrip_protocol(self, name: str) -> str:
        """The path with its protocol."""
        return f"usrbio://{self._strip_protocol(name)}"

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, block_size, **options)
        cache = {key: options[key] for key in ("cache_type", "cache_options") if key in options}
        return _ReadFile(self, path, self._reader, block_size=block_size or _BLOCK, **cache)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a file from `start` to `end` (not included), which may be negative as in a slice."""
        (data,) = self._cat([path], [start], [end])
        return data

    def cat_ranges(
        self,
        paths: list[str],
        starts: int | Sequence[int | None] | None,
        ends: int | Sequence[int | None] | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[bytes | Exception]:
        """Parts of several files, in one batch.

        Args:
            paths: the files, one for each part.
            starts: first bytes, or one for all.
            ends: bytes behind the last ones, or one for all.
            max_gap: not supported, as in most file systems.
            on_error: "return" puts an exception in the place of a part, "raise" raises the first one.
        """
        if max_gap is not None:
            raise NotImplementedError("max_gap")
        count = len(paths)
        firsts, lasts = _for_each(starts, count), _for_each(ends, count)
        try:
            return list(self._cat(paths, firsts, lasts))
        except OSError:
            if on_error == "raise":
                raise
        # One of them is bad: find out which, one by one.
        return [self._one(*part) for part in zip(paths, firsts, lasts, strict=True)]

    def _one(self, path: str, start: int | None, end: int | None) -> bytes | Exception:
        try:
            return self.cat_file(path, start, end)
        except OSError as error:
            return error

    def _cat(self, paths: list[str], starts: Sequence[int | None], ends: Sequence[int | None]) -> list[bytes]:
        with ExitStack() as stack:
            files: dict[str, File] = {}
            parts = []
            for path, start, end in zip(map(self._strip_protocol, paths), starts, ends, strict=True):
                if path not in files:
                    files[path] = stack.enter_context(File(path))
                first, last, _ = slice(start, end).indices(files[path].size)
                parts.append(Part(files[path], first, max(first, last)))
            return self._reader.read(parts)


def _for_each(bounds: int | Sequence[int | None] | None, count: int) -> list[int | None]:
    if bounds is None or isinstance(bounds, int):
        return [bounds] * count
    if len(bounds) != count:
        raise ValueError(f"{len(bounds)} starts or ends for {count} paths: give one for each path")
    return list(bounds)


class Part(NamedTuple):
    """Bytes of a file."""

    file: File
    first: int
    last: int
    """Behind the last one."""


class _Piece(NamedTuple):
    """A part, or a piece of a long one."""

    part: int
    file: File
    at: int
    length: int
    to: int
    """Where it goes in its part."""


class _Reader:
    """Reads through the rings of a pool, or by plain reads where shared memory is too short for a ring."""

    def __init__(self) -> None:
        self._pools = Pools(_DEPTH)

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """The bytes of each part. Holes read as zeros."""
        out = [bytearray(part.last - part.first) for part in parts]
        numbered = sorted(enumerate(parts), key=_device)
        for device, group in groupby(numbered, key=_device):
            of_mount = list(group)
            pool = self._pools.of(device, of_mount[0][1].file.name)
            with pool.tool(_room_for(part for _, part in of_mount)) as tool:
                if tool is None:
                    _read_plainly(of_mount, out)
                else:
                    _read_by_ring(tool, of_mount, out)
        return [bytes(data) for data in out]


def _device(numbered: tuple[int, Part]) -> int:
    return numbered[1].file.device


def _room_for(parts: Iterable[Part]) -> int:
    """Bytes of a buffer that holds one batch of all parts."""
    return min(_DEPTH * _BLOCK, sum(part.last - part.first for part in parts))


def _read_by_ring(tool: Tool, parts: list[tuple[int, Part]], out: list[bytearray]) -> None:
    memory = memoryview(tool.iov)
    batch: list[_Piece] = []
    places: list[int] = []
    used = 0

    def carry_out() -> None:
        files, offsets = [piece.file for piece in batch], [piece.at for piece in batch]
        results = tool.ring.read(files, offsets, [piece.length for piece in batch], tool.iov, places)
        for piece, place, count in zip(batch, places, results, strict=True):
            out[piece.part][piece.to : piece.to + count] = memory[place : place + count]

    for piece in _pieces(parts, min(_BLOCK, tool.size)):
        if len(batch) == _DEPTH or used + piece.length > tool.size:
            carry_out()
            batch, places, used = [], [], 0
        batch.append(piece)
        places.append(used)
        used += piece.length
    if batch:
        carry_out()


def _pieces(parts: list[tuple[int, Part]], longest: int) -> Iterator[_Piece]:
    for index, part in parts:
        for at in range(part.first, part.last, longest):
            yield _Piece(index, part.file, at, min(longest, part.last - at), at - part.first)


def _read_plainly(parts: list[tuple[int, Part]], out: list[bytearray]) -> None:
    for index, part in parts:
        memory = memoryview(out[index])
        done = 0
        while done < len(memory):
            count = os.preadv(part.file.fileno(), [memory[done:]], part.first + done)
            if count == 0:
                break
            done += count


class _ReadFile(AbstractBufferedFile):  # type: ignore[misc]
    """An open file. fsspec buffers, and asks for ranges."""

    def __init__(self, fs: UsrbioFileSystem, path: str, reader: _Reader, **options: Any) -> None:
        self._file = File(path)
        self._reader = reader
        super().__init__(fs, path, mode="rb", size=self._file.size, **options)

    def _fetch_range(self, start: int, end: int) -> bytes:
        (data,) = self._reader.read([Part(self._file, start, end)])
        return data

    def close(self) -> None:
        super().close()
        self._file.close()
