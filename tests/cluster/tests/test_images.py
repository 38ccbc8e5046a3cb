"""When an image is built anew, and what the images without a builder look like."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from tests.cluster import images
from tests.cluster.oci import write_image


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with everything that the images are made from."""
    for given in {path for inputs in images.TARGETS.values() for path in inputs}:
        path = tmp_path / given
        path.parent.mkdir(parents=True, exist_ok=True)
        if "." in path.name:
            path.write_text("content")
        else:
            path.mkdir()
            (path / "file").write_text("content")
    (tmp_path / "Dockerfile").write_text("FROM scratch")
    return tmp_path


def keys(tree: Path) -> dict[str, str]:
    return {target: images.content_key(tree, target) for target in images.TARGETS}


def test_same_content_has_the_same_key(tree: Path) -> None:
    """Nothing is built twice from the same files."""
    assert keys(tree) == keys(tree)


def test_python_change_builds_python_only(tree: Path) -> None:
    """A changed line of the operator leaves the other images alone."""
    before = keys(tree)
    (tree / "operator/src/file").write_text("changed")
    after = keys(tree)
    assert {target for target in before if before[target] != after[target]} == {"operator"}


def test_mode_and_name_count(tree: Path) -> None:
    """A file that becomes a program, or changes its name, is another content."""
    before = keys(tree)
    (tree / "client-native/file").chmod(0o755)
    changed = keys(tree)
    (tree / "client-native/file").rename(tree / "client-native/other")
    assert len({before["usrbiod"], changed["usrbiod"], keys(tree)["usrbiod"]}) == 3


def test_build_output_and_tests_do_not_count(tree: Path) -> None:
    """What a compiler leaves in the tree, tests and documents do not make another image."""
    before = keys(tree)
    for folder in ("client-native/target", "client-native/tests", "crds/src/__pycache__"):
        (tree / folder).mkdir()
        (tree / folder / "output").write_text("new")
    assert keys(tree) == before


def test_dockerfile_starts_from_known_images() -> None:
    """The images that are made where no registry answers are those that the Dockerfile names."""
    assert set(images.bases().values()) == {"DEBIAN", "RUST"}


def test_unreachable_registry_is_no_registry() -> None:
    """A registry that does not resolve counts as one that does not answer."""
    assert not images.registry_answers("registry.invalid/debian:trixie-slim")


def test_oci_image_is_consistent(tmp_path: Path) -> None:
    """Every blob of a written image has the digest and size that it is found by, and the program is in it."""
    program = tmp_path / "hello"
    program.write_bytes(b"\x7fELF")
    write_image(tmp_path / "image.tar", "localhost/hello:1", program)
    with tarfile.open(tmp_path / "image.tar") as archive:
        files = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    for name, blob in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"
    [entry] = json.loads(files["index.json"])["manifests"]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/hello:1"
    manifest = json.loads(files[f"blobs/sha256/{entry['digest'][7:]}"])
    layer = files[f"blobs/sha256/{manifest['layers'][0]['digest'][7:]}"]
    assert manifest["layers"][0]["size"] == len(layer)
    with tarfile.open(fileobj=io.BytesIO(layer)) as content:
        [member] = content
        assert (member.name, member.mode) == ("hello", 0o755)


def test_a_fresh_clone_has_its_stubs_made_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is built from them, and not again."""
    asked: list[list[str]] = []
    monkeypatch.setattr(images, "run", lambda argv, **_: asked.append(argv))
    stubs = tmp_path / "csi_pb2.py"
    images.make_stubs(stubs)
    assert asked[0][-1] == "stubs"
    stubs.touch()
    images.make_stubs(stubs)
    assert len(asked) == 1
