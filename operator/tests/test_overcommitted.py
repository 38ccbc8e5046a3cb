"""A cluster whose promises are larger than what is free stays, and says so."""

import pytest

from kube3fs_crds import Condition, StorageCluster, StorageClusterStatus
from kube3fs_operator.placement import share
from kube3fs_operator.status import Attempt, status

from .conftest import GIB, NOW, Make, world_of


def seen(available: int, reserved: int | None, provisioning: str = "Thick") -> StorageClusterStatus:
    """The status with so much free and so much of it promised."""
    body = Make.cluster(provisioning=provisioning)
    figures = {"available": available} | ({} if reserved is None else {"reserved": reserved})
    world = world_of(
        [
            body,
            Make.node(),
            Make.storage_node("node-a", "demo", **figures),
            Make.storage_class("team.demo", "demo"),
        ]
    )
    return status(StorageCluster.model_validate(body), world, Attempt(), NOW)


def condition(found: StorageClusterStatus, kind: str) -> Condition:
    """The condition of that type."""
    return next(one for one in found.conditions if one.type == kind)


@pytest.mark.parametrize(
    ("available", "reserved", "left"),
    [(39 * GIB, 30 * GIB, 9 * GIB), (39 * GIB, 90 * GIB, 0), (39 * GIB, None, 39 * GIB)],
    ids=["covered", "overpromised", "older-plugin"],
)
def test_what_is_left_is_free_and_not_promised(available: int, reserved: int | None, left: int) -> None:
    """In `kubectl get tfs` and in the status; free space is told beside it."""
    found = seen(available, reserved)
    assert (found.available_bytes, found.unreserved_bytes) == (available, left)
    assert found.summary is not None
    assert found.summary.available == (f"{left // GIB}Gi" if left else "0")


def test_an_overpromised_cluster_stays_ready_with_a_condition() -> None:
    """It was made so by an earlier version, or its disk was filled by others: nothing is taken away."""
    found = seen(39 * GIB, 90 * GIB)
    assert condition(found, "Ready").status == "True"
    over = condition(found, "Overcommitted")
    assert (over.status, over.reason) == ("True", "PromisesExceedSpace")
    assert "node node-a: 90Gi are promised" in over.message
    assert condition(seen(39 * GIB, 30 * GIB), "Overcommitted").status == "False"


def test_thin_provisioning_is_told_to_the_node_and_shown() -> None:
    """Only a cluster that says so is thin; the spec of others is as it was."""
    assert condition(seen(39 * GIB, 0, "Thin"), "Overcommitted").reason == "Thin"
    for provisioning, told in (("Thin", "Thin"), ("Thick", None)):
        world = world_of(
            [Make.cluster(provisioning=provisioning), Make.node(), Make.storage_node("node-a", "demo")]
        )
        assert share("node-a", world).clusters[0].as_object().get("provisioning") == told


def test_scratch_volumes_are_counted_over_all_nodes() -> None:
    """With their number, and in what `kubectl get tfs` shows as allocated."""
    nodes = [
        Make.node("node-a"), Make.storage_node("node-a", "demo", scratch=(30 * GIB, 2)),
        Make.node("node-b"), Make.storage_node("node-b", "demo", scratch=(10 * GIB, 1)),
    ]  # fmt: skip
    world = world_of([Make.cluster(), Make.volume(size=5 * GIB), *nodes])
    found = status(StorageCluster.model_validate(Make.cluster()), world, Attempt(), NOW)
    assert (found.scratch_bytes, found.scratch_volumes, found.allocated_bytes) == (40 * GIB, 3, 5 * GIB)
    assert found.summary is not None
    assert (found.summary.allocated, found.summary.scratch) == ("45Gi", "40Gi (3)")


def test_a_sum_that_no_status_can_say_is_cut() -> None:
    """Scratch volumes of earlier versions may have any size: the other fields are said all the same."""
    most = 2**62
    nodes = [
        Make.node("node-a"), Make.storage_node("node-a", "demo", scratch=(most, 1)),
        Make.node("node-b"), Make.storage_node("node-b", "demo", scratch=(most, 1)),
    ]  # fmt: skip
    world = world_of([Make.cluster(), *nodes])
    found = status(StorageCluster.model_validate(Make.cluster()), world, Attempt(), NOW)
    assert (found.scratch_bytes, found.scratch_volumes) == (most, 2)
