"""containerd's store with every image in it, made once per set of images: nodes start with it."""

import hashlib
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.cluster import cache
from tests.cluster.paths import CACHE
from tests.cluster.shell import ClusterError, last_line, progress, run

# As containerd names them below its root.
CONTENT = "io.containerd.content.v1.content"
METADATA = "io.containerd.metadata.v1.bolt"


def ensure(programs: Path, archives: Sequence[Path]) -> Path:
    """A folder with the content and the metadata of the images in `archives`."""
    digest = hashlib.sha256(str(programs).encode())
    for path in archives:
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return cache.made(
        CACHE / "stores" / digest.hexdigest()[:16], lambda folder: _make(folder, programs / "bin", archives)
    )


def use(store: Path, root: Path) -> None:
    """Make `root` a containerd root that starts with the images of `store`, which stays as it is."""
    metadata, content, changes, work = (
        root / name for name in (METADATA, CONTENT, "content-changes", "content-work")
    )
    for folder in (content, changes, work):
        folder.mkdir(parents=True)
    shutil.copytree(store / METADATA, metadata)
    options = f"lowerdir={store / CONTENT},upperdir={changes},workdir={work}"
    run(["mount", "-t", "overlay", "-o", options, "images", content], timeout=10)


def _make(folder: Path, programs: Path, archives: Sequence[Path]) -> None:
    root, socket, log = folder / "root", folder / "containerd.sock", folder / "containerd.log"
    folder.mkdir()
    (folder / "config.toml").write_text(
        f'version = 3\nroot = "{root}"\nstate = "{folder}/state"\n'
        f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "{socket}"\n'
    )
    with progress("loading the images"), log.open("wb") as output:
        containerd = subprocess.Popen([programs / "containerd", "-c", folder / "config.toml"], stderr=output)
        try:
            _wait(socket, containerd, log)
            # Not unpacked: containerd does that when the first container of an image starts.
            ctr = [str(programs / "ctr"), f"--address={socket}", "-n", "k8s.io", "images", "import"]
            for archive in archives:
                run(
                    [*ctr, "--no-unpack", str(archive)],
                    timeout=300,
                    advice=f"is {archive} an image archive of OCI or docker?",
                )
        finally:
            containerd.terminate()
            containerd.wait(30)
    for name in (CONTENT, METADATA):
        (root / name).rename(folder / name)
    shutil.rmtree(root)
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()


def _wait(socket: Path, containerd: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while not socket.exists():
        if containerd.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"containerd did not start: {last_line(log.read_text(errors='replace'))}")
        time.sleep(0.05)
