"""The client library on the node, in a tmpfs of its own, from which pods get bind mounts.

A read-only bind mount would not do: container runtimes make it writable again for a pod that asks for `rw`,
and a pod that runs as root could change what others load. A file system that is itself read-only stays so. It
outlives our container, and goes with the last pod that uses it.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from kube3fs_csi.node import mounts


def install(source: Path, folder: Path, in_use: Iterable[Path]) -> Path:
    """Copies `source` below `folder`, by a digest of its content, and removes versions that no pod uses."""
    folder.mkdir(parents=True, exist_ok=True)
    version = folder / _digest(source)
    if not _is_whole(version):
        mounts.unmount(version)
        version.mkdir(exist_ok=True)
        mounts.mount_library(version)
        shutil.copytree(source, version, symlinks=True, dirs_exist_ok=True)
        version.chmod(0o755)
        mounts.seal_library(version)
    keep = {version, *in_use}
    for other in folder.iterdir():
        if other not in keep:
            mounts.unmount(other)
            shutil.rmtree(other)
    return version


def _is_whole(version: Path) -> bool:
    """Whether nothing was cut off: it is made read-only last."""
    return any("ro" in mount.super_options for mount in mounts.mounts_at(version))


def _digest(source: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(source.rglob("*")):
        digest.update(os.fsencode(path.relative_to(source)) + b"\0")
        if path.is_symlink():
            digest.update(os.fsencode(path.readlink()))
        elif path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
