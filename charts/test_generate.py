"""The generator of the chart's README and schema: what it takes from values.yaml, and what it refuses."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


def load() -> ModuleType:
    """The program as a module; charts/ is no package."""
    spec = importlib.util.spec_from_file_location("chart_generate", HERE / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load()
VALUES = """
group:
  # How many.
  # More words.
  # @schema {"minimum": 1}
  count: 2
  # Any labels.
  # @schema {"type": "object", "additionalProperties": {"type": "string"}}
  labels: {a: b}
"""


def test_comments_become_descriptions_and_schema() -> None:
    """Words, types from defaults, and what @schema adds."""
    count = generate.schema(generate.read(VALUES))["properties"]["group"]["properties"]["count"]
    assert count == {"type": "integer", "minimum": 1, "description": "How many. More words."}


def test_unknown_keys_are_refused_except_in_free_values() -> None:
    """A group is closed; a value that is declared free is not."""
    group = generate.schema(generate.read(VALUES))["properties"]["group"]
    assert group["additionalProperties"] is False
    assert group["properties"]["labels"]["additionalProperties"] == {"type": "string"}


def test_the_readme_lists_values_and_not_groups() -> None:
    """One row for each value that can be set."""
    text = generate.readme("<!-- values -->", generate.read(VALUES))
    assert "| `group.count` | `2` | How many. More words. |" in text
    assert "| `group` |" not in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("a: 1\n", "line 1: a needs a comment", id="no-comment"),
        pytest.param(
            "# x\n# @schema {\na: 1\n", "a: what stands after @schema is not YAML", id="broken-schema"
        ),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    """The message says which key."""
    with pytest.raises(generate.ValuesError, match=message):
        generate.read(text)


def test_check_fails_on_a_stale_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--check` writes nothing and names the stale file; without it the file is written."""
    (tmp_path / "values.yaml").write_text(VALUES)
    (tmp_path / "README.template.md").write_text("<!-- values -->")
    assert generate.main([str(tmp_path), "--check"]) == 1
    assert "values.schema.json is not up to date" in capsys.readouterr().err
    assert generate.main([str(tmp_path)]) == 0
    assert generate.main([str(tmp_path), "--check"]) == 0
