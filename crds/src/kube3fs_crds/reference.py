"""Writes the reference of the API types: `python -m kube3fs_crds.reference docs/reference.md`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kube3fs_crds import API_VERSION, KINDS
from kube3fs_crds.base import Resource
from kube3fs_crds.schema import structural

HEAD = f"""# Reference of the API types

Group and version: `{API_VERSION}`. Made from the models in `crds/src` by `make crds`; do not edit.
`kubectl explain storagecluster.spec` shows the same in a terminal.
"""


def reference() -> str:
    """The whole page, in Markdown."""
    return "\n".join([HEAD, *(_kind(kind) for kind in KINDS)])


def _kind(kind: type[Resource]) -> str:
    names, schema = kind.names, structural(kind)
    scope = "namespaced" if names.namespaced else "cluster-scoped"
    lines = [
        f"## {kind.__name__}",
        "",
        schema["description"],
        "",
        f"Short name `{names.short}`, {scope}.",
        "",
        "| field | type | what it is |",
        "|---|---|---|",
    ]
    for part in ("spec", "status"):
        lines += _rows(schema["properties"][part], part, required=part in schema.get("required", []))
    rules = list(_rules(schema, ""))
    if rules:
        lines += [
            "",
            "The API server refuses what breaks one of these rules, with the message given here:",
            "",
        ]
        lines += [f"* `{where or 'the object'}`: {message}" for where, message in rules]
    return "\n".join([*lines, ""])


def _rows(schema: dict[str, Any], where: str, *, required: bool) -> Iterator[str]:
    words = [schema.get("description") or schema.get("items", {}).get("description", "")]
    if required:
        words.append("**Required.**")
    if "enum" in schema:
        words.append(f"One of {', '.join(f'`{value}`' for value in schema['enum'])}.")
    if "default" in schema:
        words.append(f"Default: `{schema['default']}`.")
    yield f"| `{where}` | {_type(schema)} | {' '.join(filter(None, words)).replace('|', chr(92) + '|')} |"
    if where == "status.conditions":
        return  # metav1.Condition, as everywhere
    inner, at = (schema["items"], f"{where}[]") if schema["type"] == "array" else (schema, where)
    for name, sub in inner.get("properties", {}).items():
        yield from _rows(sub, f"{at}.{name}", required=name in inner.get("required", []))


def _type(schema: dict[str, Any]) -> str:
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if "additionalProperties" in schema:
        return f"map of {_type(schema['additionalProperties'])}"
    return str(schema.get("format", schema["type"]))


def _rules(schema: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield where, rule["message"]
    for name, sub in schema.get("properties", {}).items():
        yield from _rules(sub, f"{where}.{name}".lstrip("."))
    if "items" in schema:
        yield from _rules(schema["items"], f"{where}[]")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference())
