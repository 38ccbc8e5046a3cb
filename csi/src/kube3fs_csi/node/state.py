"""What is published on this node, on disk: one file for each target path, written before the mount is made.

A file is replaced by rename, so that a killed plugin leaves the old or the new one. It is synced only where
its loss in a power cut would matter: mounts are gone then, but scratch volumes must be found and deleted.
"""

import hashlib
import logging
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

log = logging.getLogger(__name__)

Kind = Literal["filesystem", "shm", "client", "scratch"]

_NOT_IN_SESSION_NAMES = re.compile(r"[^A-Za-z0-9._-]")


class Pod(BaseModel):
    """The pod that a volume is published for. `key` names its private tmpfs."""

    model_config = ConfigDict(frozen=True)

    key: str
    namespace: str = ""
    name: str = ""


class Published(BaseModel):
    """One volume at one target path, as it was asked for. Fields of a newer version are not looked at."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    volume_id: str
    target: Path
    kind: Kind
    pod: Pod
    read_only: bool = False
    exclusive: bool = False
    """No other target may have the volume meanwhile (ReadWriteOncePod)."""
    user_namespace: bool = False
    """The pod has users of its own (`hostUsers: false`): its runtime maps the mount (FUSE_ALLOW_IDMAP)."""
    mount_flags: int = 0
    """Flags of mount(2) besides those that every mount has."""
    group: int | None = None
    """Group that may write (VOLUME_MOUNT_GROUP)."""
    cluster: str = ""
    """NAMESPACE/NAME of the StorageCluster, for the kinds that have one."""
    size: int = 0
    """Bytes of shared memory or of a scratch volume."""
    huge: str = ""
    """tmpfs option huge=, see tmpfs(5)."""
    passthrough: bool = True
    """Reads and writes go straight to the file below, where the kernel can."""
    orders: bool = False
    """Links to mv: are orders to rename, wherever they are made."""
    source: Path | None = None
    """What is shown at the target: a directory of the data root, or of the client library."""

    @property
    def key(self) -> str:
        """Digest of the target path, short enough for the name of a file."""
        return hashlib.sha256(os.fsencode(self.target)).hexdigest()[:24]

    @property
    def session(self) -> str:
        """Name of the session at usrbiod: one for each target, and the volume can be read off."""
        return f"{_NOT_IN_SESSION_NAMES.sub('-', self.volume_id).lstrip('.')[:80]}.{self.key}"

    @property
    def is_mount_of_ours(self) -> bool:
        """Whether usrbiod serves it."""
        return self.kind in ("filesystem", "scratch")


class Store:
    """The files, and the same in memory. A plugin that is being replaced may still change the files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._cached: dict[Path, Published] = {}
        self._read_at = -1
        for unfinished in folder.glob("*.new"):
            unfinished.unlink()

    @property
    def _records(self) -> dict[Path, Published]:
        """What the folder holds now."""
        changed_at = self._folder.stat().st_mtime_ns
        if changed_at != self._read_at:
            found = (_read(path) for path in self._folder.glob("*.json"))
            self._cached = {record.target: record for record in found if record is not None}
            self._read_at = changed_at
        return self._cached

    def all(self) -> list[Published]:
        """Every record."""
        return list(self._records.values())

    def get(self, target: Path) -> Published | None:
        """What is published at `target`."""
        return self._records.get(target)

    def of_pod(self, pod_key: str) -> list[Published]:
        """What is published for a pod."""
        return [record for record in self._records.values() if record.pod.key == pod_key]

    def put(self, record: Published) -> None:
        """Writes the record down."""
        final = self._folder / f"{record.key}.json"
        records = self._records
        write_atomically(final, record.model_dump_json().encode(), sync=record.kind == "scratch")
        records[record.target] = record
        self._read_at = self._folder.stat().st_mtime_ns

    def remove(self, record: Published) -> None:
        """Forgets the record."""
        records = self._records
        (self._folder / f"{record.key}.json").unlink(missing_ok=True)
        records.pop(record.target, None)
        self._read_at = self._folder.stat().st_mtime_ns


def _read(path: Path) -> Published | None:
    try:
        return Published.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        log.warning("%s is not readable and is removed: %s", path, error)
        path.unlink(missing_ok=True)
        return None


def write_atomically(final: Path, content: bytes, *, sync: bool) -> None:
    """Replaces `final`; nobody ever sees half of it."""
    new = final.with_suffix(".new")
    with new.open("wb") as file:
        file.write(content)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    new.replace(final)
    if sync:
        folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
