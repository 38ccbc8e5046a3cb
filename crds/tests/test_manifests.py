"""The committed CRDs: equal to the models, and within what the API server accepts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube3fs_crds import KINDS, Resource
from kube3fs_crds.generate import crd, file_name, main, render
from kube3fs_crds.reference import reference

ROOT = Path(__file__).parents[2]
FOLDERS = [ROOT / "crds/manifests", ROOT / "charts/kube3fs/files/crds"]


@pytest.mark.parametrize("folder", FOLDERS, ids=["manifests", "chart"])
@pytest.mark.parametrize("kind", KINDS)
def test_committed_yaml_is_what_the_models_say(kind: type[Resource], folder: Path) -> None:
    """`make crds` would change nothing."""
    assert (folder / file_name(kind)).read_text() == render(kind), "run make crds"


@pytest.mark.parametrize("folder", FOLDERS, ids=["manifests", "chart"])
def test_no_manifest_without_a_model(folder: Path) -> None:
    """The folder holds the CRDs of today's kinds and nothing else."""
    assert {path.name for path in folder.iterdir()} == {file_name(kind) for kind in KINDS}


def test_committed_reference_is_what_the_models_say() -> None:
    """`make crds` would change nothing in docs/reference.md, where every field is described."""
    text = reference()
    assert (ROOT / "docs/reference.md").read_text() == text, "run make crds"
    assert "|  |" not in text


def test_generator_writes_every_kind_into_a_new_folder(tmp_path: Path) -> None:
    """The command makes the folder and writes one loadable file per kind."""
    assert main([str(tmp_path / "new")]) == 0
    kinds = {
        yaml.safe_load(path.read_text())["spec"]["names"]["kind"] for path in (tmp_path / "new").iterdir()
    }
    assert kinds == {kind.__name__ for kind in KINDS}


def nodes(schema: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a schema with its path."""
    yield where, schema
    for name, sub in schema.get("properties", {}).items():
        yield from nodes(sub, f"{where}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{where}[]")


def version(kind: type[Resource]) -> dict[str, Any]:
    found: dict[str, Any] = crd(kind)["spec"]["versions"][0]
    return found


def schema_nodes(kind: type[Resource]) -> list[tuple[str, dict[str, Any]]]:
    root = version(kind)["schema"]["openAPIV3Schema"]
    return [
        (where, node)
        for where, node in nodes(root, kind.__name__)
        if where.count(".") != 1 or where.rpartition(".")[2] not in ("apiVersion", "kind", "metadata")
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_bounded(kind: type[Resource]) -> None:
    """Every string, list and map has a greatest size: without it CEL rules cost too much to be admitted."""
    for where, node in schema_nodes(kind):
        if node["type"] == "string" and "enum" not in node and "format" not in node:
            assert "maxLength" in node, where
        if node["type"] == "array":
            assert "maxItems" in node, where
        if "additionalProperties" in node:
            assert "maxProperties" in node, where


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_objects_merge_by_key(kind: type[Resource]) -> None:
    """Server-side apply by two writers needs list-map keys, and the API server wants those keys required."""
    for where, node in schema_nodes(kind):
        if node["type"] == "array" and node["items"]["type"] == "object":
            keys = node.get("x-kubernetes-list-map-keys")
            assert keys, where
            assert set(keys) <= set(node["items"]["required"]), where


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_selectable_fields_exist(kind: type[Resource]) -> None:
    """A printer column or field selector names a field that is there; else it shows nothing, silently."""
    known = {where.removeprefix(kind.__name__) for where, _ in schema_nodes(kind)} | {
        ".metadata.creationTimestamp"
    }
    for column in kind.names.columns:
        plain = column.json_path.replace("[*]", "[]")
        if "[?(" in plain:
            plain = plain.partition("[?(")[0] + "[]" + plain.rpartition(")]")[2]
        assert plain in known, column
    assert set(kind.names.selectable) <= known


@pytest.mark.parametrize("kind", KINDS)
def test_rules_say_what_to_do_in_one_line(kind: type[Resource]) -> None:
    """Each CEL rule has a message that kubectl prints in one line, and no rule is empty."""
    for where, node in schema_nodes(kind):
        for rule in node.get("x-kubernetes-validations", []):
            assert rule["rule"].strip(), where
            assert 10 <= len(rule["message"]) <= 200, where
            assert "\n" not in rule["message"], where


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_status_and_belongs_to_the_category(kind: type[Resource]) -> None:
    """`kubectl get kube3fs` lists everything of ours, and status is a subresource."""
    assert version(kind)["subresources"] == {"status": {}}
    names = crd(kind)["spec"]["names"]
    assert names["categories"] == ["kube3fs"]
    assert names["shortNames"] == [kind.names.short]
