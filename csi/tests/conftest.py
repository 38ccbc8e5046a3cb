"""Fixtures: file systems on loop devices, and the real usrbiod. All need root."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import csikit  # noqa: F401 our programs are in the path from here on
import pytest

MAKE = {
    "btrfs": ["mkfs.btrfs", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "ext4": ["mkfs.ext4", "-q"],
}
SIZE = {"btrfs": 512 << 20, "xfs": 320 << 20, "ext4": 256 << 20}


@pytest.fixture
def make_root(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of the given type on a loop device, mounts it and returns its mount point."""
    mounted: list[Path] = []

    def make(fstype: str) -> Path:
        image, root = tmp_path / f"{fstype}.img", tmp_path / fstype
        with image.open("wb") as file:
            file.truncate(SIZE[fstype])
        subprocess.run([*MAKE[fstype], str(image)], check=True)
        root.mkdir()
        subprocess.run(["mount", "-o", "loop", str(image), str(root)], check=True)
        mounted.append(root)
        return root

    yield make
    for root in mounted:
        subprocess.run(["umount", "-l", str(root)], check=True)
