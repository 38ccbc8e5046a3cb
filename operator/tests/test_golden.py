"""Rendered children and status of whole small worlds, as files that a person can read.

Each folder of golden/ has `world.yaml`, the objects that exist, and `expected.yaml`, what the operator makes
of them. `REWRITE_GOLDEN=1 pytest operator` writes the second anew: read the diff before committing it.
"""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube3fs_operator import render
from kube3fs_operator.placement import share
from kube3fs_operator.status import Attempt, status
from kube3fs_operator.views import ClusterKey

CASES = sorted(path.parent for path in (Path(__file__).parent / "golden").glob("*/world.yaml"))


def outcome(world: Any, now: Any) -> dict[str, Any]:
    """Everything that the operator would write."""
    names = sorted({*world.nodes, *world.storage_nodes})
    return {
        "nodes": {name: [entry.as_object() for entry in share(name, world).clusters] for name in names},
        "clusters": {
            str(ClusterKey.of(cluster)): {
                "children": render.classes(cluster, world),
                "status": status(cluster, world, Attempt(), now).as_object(),
            }
            for cluster in world.all_clusters()
        },
    }


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_golden(case: Path, world: Any, now: Any) -> None:
    """The world of the folder yields exactly the objects in its expected.yaml."""
    seen = outcome(world(yaml.safe_load_all((case / "world.yaml").read_text())), now)
    expected = case / "expected.yaml"
    if os.environ.get("REWRITE_GOLDEN"):
        expected.write_text(yaml.safe_dump(seen, sort_keys=False, width=110))
    assert seen == yaml.safe_load(expected.read_text())
