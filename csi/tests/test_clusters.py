"""One StorageCluster with a wrong folder is not ready, with its reason; all others of the node are served."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kube3fs_csi.node.clusters import Clusters, Wanted
from kube3fs_csi.node.lanes import Lanes
from kube3fs_csi.serving.errors import Precondition


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mounts a file system below the data folder."""
    made: list[Path] = []

    def mount(name: str, *options: str) -> Path:
        path = tmp_path / name
        path.mkdir()
        subprocess.run(["mount", *options, name, str(path)], check=True)
        made.append(path)
        return path

    yield mount
    for path in made:
        subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_wrong_folder_takes_nothing_from_the_others(
    tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    """Outside of the data folders, a file, a link, read-only, without attributes: each says what to do."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "link").symlink_to(tmp_path / "good")
    (tmp_path / "half").mkdir()
    (tmp_path / "half/volumes").write_text("in the way")
    wrong = {
        "ns/etc": (Path("/etc/kubernetes"), "dataDirs"),
        "ns/dots": (tmp_path / "../../etc", "dataDirs"),
        "ns/file": (tmp_path / "file", "in its place"),
        "ns/below": (tmp_path / "file/below", "in its place"),
        "ns/link": (tmp_path / "link", "symbolic link"),
        "ns/half": (tmp_path / "half", "in its place"),
        "ns/read-only": (mounted("read-only", "-t", "tmpfs", "-o", "ro"), "is read-only"),
        "ns/plain": (mounted("plain", "-t", "ramfs"), "keeps no extended attributes"),
        "ns/long": (tmp_path / ("x" * 300), "too long"),
    }
    clusters = Clusters(tmp_path / "clusters.json", [tmp_path], Lanes())
    wanted = {name: Wanted(path) for name, (path, _words) in wrong.items()}
    clusters.set(wanted | {"ns/good": Wanted(tmp_path / "good"), "ns/more": Wanted(tmp_path / "more")})
    await clusters.look(20)
    served = clusters.all()
    assert {name for name, one in served.items() if one.ready} == {"ns/good", "ns/more"}
    for name, (_path, words) in wrong.items():
        assert served[name].reason == "FolderUnusable", name
        with pytest.raises(Precondition, match=words):
            clusters.backend(name)
        assert "[Errno" not in served[name].message
    clusters.backend("ns/good").create("v1", 1 << 20, None, lambda _done, _total: None)


async def test_a_folder_that_is_mended_is_served_without_a_restart(tmp_path: Path) -> None:
    """The next look finds it; and one that breaks is not ready from then on."""
    (tmp_path / "data").write_text("in the way")
    clusters = Clusters(tmp_path / "clusters.json", [tmp_path], Lanes())
    clusters.set({"ns/fast": Wanted(tmp_path / "data")})
    await clusters.look(20)
    assert not clusters.all()["ns/fast"].ready
    (tmp_path / "data").unlink()
    await clusters.look(20)
    assert clusters.all()["ns/fast"].ready
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    await clusters.look(20)
    assert clusters.all()["ns/fast"].reason == "DataMissing"
    assert not (tmp_path / "data").exists()


async def test_a_full_file_system_is_served_after_a_restart(
    tmp_path: Path, mounted: Callable[..., Path]
) -> None:
    """Who fills it keeps no pod from its volume, and its volumes can be deleted to make room."""
    root = mounted("full", "-t", "tmpfs", "-o", "size=1m")

    async def started() -> Clusters:
        clusters = Clusters(tmp_path / "clusters.json", [tmp_path], Lanes())
        clusters.set({"ns/full": Wanted(root)})
        await clusters.look(20)
        return clusters

    (await started()).backend("ns/full").create("v1", 1 << 16, None, lambda _done, _total: None)
    with pytest.raises(OSError, match="No space left"):
        (root / "volumes/v1/file").write_bytes(bytes(2 << 20))
    backend = (await started()).backend("ns/full")
    assert backend.capacity("v1") == 1 << 16
    backend.delete("volume", "v1")
