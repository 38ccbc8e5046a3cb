"""Writes the CRDs: `python -m kube3fs_crds.generate FOLDER...` puts a YAML file per kind into each folder."""

import sys
from pathlib import Path
from typing import Any

import yaml

from kube3fs_crds import GROUP, KINDS, VERSION
from kube3fs_crds.base import Column, Resource
from kube3fs_crds.schema import structural

HEADER = "# Made from the models in crds/src by `make crds`; do not edit.\n"


def crd(kind: type[Resource]) -> dict[str, Any]:
    """The CustomResourceDefinition of one kind."""
    names = kind.names
    version: dict[str, Any] = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(column) for column in names.columns],
        "schema": {"openAPIV3Schema": _root_schema(kind)},
    }
    if names.selectable:
        version["selectableFields"] = [{"jsonPath": path} for path in names.selectable]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "kube3fs"},
            # Uninstalling the chart must not delete clusters and volumes.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if names.namespaced else "Cluster",
            "names": {
                "kind": kind.__name__,
                "listKind": f"{kind.__name__}List",
                "plural": names.plural,
                "singular": kind.__name__.lower(),
                "shortNames": [names.short],
                "categories": ["kube3fs"],
            },
            "versions": [version],
        },
    }


def _root_schema(kind: type[Resource]) -> dict[str, Any]:
    """The API server fills in and checks apiVersion, kind and metadata itself: their schema says no more."""
    schema = structural(kind)
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["required"] = [name for name in schema["required"] if name != "metadata"]
    return {key: value for key, value in schema.items() if key != "required" or value}


def _column(column: Column) -> dict[str, Any]:
    body: dict[str, Any] = {"name": column.name, "type": column.type, "jsonPath": column.json_path}
    return body | ({"priority": column.priority} if column.priority else {})


def render(kind: type[Resource]) -> str:
    """The file's text."""
    return HEADER + yaml.safe_dump(crd(kind), sort_keys=False, width=110)


def file_name(kind: type[Resource]) -> str:
    """For example kube3fs.io_storagevolumes.yaml."""
    return f"{GROUP}_{kind.names.plural}.yaml"


def main(folders: list[str]) -> int:
    """Write all kinds into each folder. Returns the exit status."""
    for folder in map(Path, folders):
        folder.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            (folder / file_name(kind)).write_text(render(kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
