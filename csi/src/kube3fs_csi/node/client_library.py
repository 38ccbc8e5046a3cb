"""The client library on the node: copied out of the image, so that a pod's mount outlives our container."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def install(source: Path, folder: Path, in_use: Iterable[Path]) -> Path:
    """Copies `source` below `folder`, by a digest of its content, and removes versions that no pod uses."""
    folder.mkdir(parents=True, exist_ok=True)
    version = folder / _digest(source)
    if not version.exists():
        work = folder / f".{version.name}"
        if work.exists():
            shutil.rmtree(work)
        shutil.copytree(source, work, symlinks=True)
        work.chmod(0o755)
        work.rename(version)
    keep = {version, *in_use}
    for other in folder.iterdir():
        if other not in keep:
            shutil.rmtree(other)
    return version


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        digest.update(os.fsencode(path.relative_to(source)) + b"\0")
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
