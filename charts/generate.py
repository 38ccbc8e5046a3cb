"""Writes README.md and values.schema.json of a chart from the comments in its values.yaml.

    python charts/generate.py charts/kube3fs           # writes both files
    python charts/generate.py charts/kube3fs --check   # exit status 1 when one of them is not up to date

Every key needs a comment above it, which becomes its description. A line `# @schema {...}` in it (YAML in
one line) adds to the key's JSON schema or overrides what its default says. Unknown keys are refused by the
schema: a typo ends the installation instead of being ignored.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MARK = "@schema"
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass(frozen=True)
class Value:
    """One key of values.yaml."""

    path: tuple[str, ...]
    default: Any
    description: str
    schema: dict[str, Any]

    @property
    def is_group(self) -> bool:
        """A mapping whose keys are values of their own, and not one free-form value."""
        return isinstance(self.default, dict) and "type" not in self.schema


class ValuesError(Exception):
    """A key without a comment, or a comment that cannot be read. The message says where."""


def read(text: str) -> list[Value]:
    """Every key of the file, in order. Raises ValuesError."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return list(_walk(root, (), text.splitlines()))


def _walk(node: Any, path: tuple[str, ...], lines: list[str]) -> Iterator[Value]:
    for key, value in node.value:
        here = (*path, key.value)
        description, schema = _comment(lines, key.start_mark.line, ".".join(here))
        default = yaml.safe_load(yaml.serialize(value))
        found = Value(here, default, description, schema)
        if not description and not found.is_group:
            raise ValuesError(f"line {key.start_mark.line + 1}: {'.'.join(here)} needs a comment above it")
        yield found
        if found.is_group:
            yield from _walk(value, here, lines)


def _comment(lines: list[str], at: int, name: str) -> tuple[str, dict[str, Any]]:
    """The comment that ends right above the line: its words, and its schema."""
    words: list[str] = []
    schema: dict[str, Any] = {}
    for line in reversed(lines[:at]):
        text = line.strip()
        if not text.startswith("#"):
            break
        text = text.removeprefix("#").strip()
        if text.startswith(MARK):
            try:
                schema = yaml.safe_load(text.removeprefix(MARK))
            except yaml.YAMLError as error:
                raise ValuesError(f"{name}: what stands after {MARK} is not YAML: {error}") from error
        else:
            words.insert(0, text)
    return " ".join(words), schema


def schema(values: list[Value]) -> dict[str, Any]:
    """The JSON schema of all values."""
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        # Helm adds `global` to every chart's values.
        "properties": {"global": {"type": "object"}},
    }
    for value in values:
        at = root
        for name in value.path[:-1]:
            at = at["properties"][name]
        own: dict[str, Any] = {"type": TYPES[type(value.default)], **value.schema}
        if value.description:
            own["description"] = value.description
        if value.is_group:
            own |= {"additionalProperties": False, "properties": {}}
        at["properties"][value.path[-1]] = own
    return root


def readme(template: str, values: list[Value]) -> str:
    """The chart's README: the template, with the table of values in place of its mark."""
    rows = ["| value | default | what it is |", "|---|---|---|"]
    for value in values:
        if not value.is_group:
            default = json.dumps(value.default).replace("|", "\\|")
            rows.append(f"| `{'.'.join(value.path)}` | `{default}` | {value.description} |")
    return template.replace("<!-- values -->", "\n".join(rows))


def outputs(chart: Path) -> dict[Path, str]:
    """Path and text of each generated file."""
    values = read((chart / "values.yaml").read_text())
    return {
        chart / "values.schema.json": json.dumps(schema(values), indent=2) + "\n",
        chart / "README.md": readme((chart / "README.template.md").read_text(), values),
    }


def main(argv: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("chart", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file would change")
    arguments = parser.parse_args(argv)
    try:
        files = outputs(arguments.chart)
    except ValuesError as error:
        print(f"{arguments.chart}/values.yaml: {error}", file=sys.stderr)
        return 1
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if arguments.check:
        for path in stale:
            print(f"{path} is not up to date: run make chart", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_text(files[path])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
