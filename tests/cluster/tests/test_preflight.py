"""What is said about a machine on which no cluster can run."""

from dataclasses import replace

import pytest

from tests.cluster.preflight import CONTROLLERS, NAMESPACES, Machine, problems, see

GOOD = Machine(
    user=0,
    python=(3, 11),
    file_systems=frozenset({"overlay", "ext4"}),
    controllers=frozenset(CONTROLLERS),
    namespaces=frozenset(NAMESPACES),
    free_gib=10,
)


def test_good_machine_has_no_problems() -> None:
    """Nothing is said about a machine that offers everything."""
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        pytest.param(replace(GOOD, user=1000), "this needs root: run it with sudo", id="not-root"),
        pytest.param(replace(GOOD, python=(3, 9)), "this needs Python 3.11 or later", id="old-python"),
        pytest.param(
            replace(GOOD, file_systems=frozenset({"ext4"})), "no overlay file system", id="no-overlay"
        ),
        pytest.param(
            replace(GOOD, controllers=frozenset({"cpu"})), "cgroup controller cpuset, memory", id="no-cgroup"
        ),
        pytest.param(
            replace(GOOD, namespaces=frozenset({"mnt", "net"})), "type ipc, pid, uts", id="no-namespace"
        ),
        pytest.param(replace(GOOD, free_gib=1), "1 GiB free and a cluster needs 2", id="no-disk"),
    ],
)
def test_each_lack_is_one_line_that_says_what_to_do(machine: Machine, sentence: str) -> None:
    """What is missing is named, in one line."""
    [problem] = problems(machine)
    assert sentence in problem
    assert "\n" not in problem


def test_this_machine_is_seen() -> None:
    """What is seen of a machine that runs these tests makes sense."""
    seen = see()
    assert {"net", "pid"} <= seen.namespaces
    assert "memory" in seen.controllers
