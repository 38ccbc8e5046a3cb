"""Volumes and snapshots that nobody refers to are named, counted, and left alone."""

import datetime
from typing import Any

import pytest

from kube3fs_crds import StorageCluster
from kube3fs_operator import claims
from kube3fs_operator.status import Attempt, status

from .conftest import NOW, Make, world_of

OLD = (NOW - datetime.timedelta(minutes=11)).isoformat()
NEW = (NOW - datetime.timedelta(minutes=4)).isoformat()
CLUSTER = StorageCluster.model_validate(Make.cluster())


def seen(*bodies: Any) -> Any:
    """The condition VolumesClaimed of the cluster."""
    conditions = status(CLUSTER, world_of([Make.cluster(), *bodies]), Attempt(), NOW).conditions
    return next(one for one in conditions if one.type == "VolumesClaimed")


def test_a_volume_without_persistent_volume_is_named() -> None:
    """With what to do about it."""
    found = seen(Make.volume(created=OLD), Make.volume("pvc-2", created=OLD), Make.persistent_volume("pvc-2"))
    assert (found.status, found.reason) == ("False", "Unclaimed")
    assert "1 volume (pvc-1 on node-a): kubectl delete tfv NAME" in found.message


def test_a_snapshot_without_content_is_named() -> None:
    """A handle that was given and one that was made both count as a reference."""
    snapshots = [Make.snapshot(name) for name in ("given", "made", "left")]
    for snapshot in snapshots:
        snapshot["metadata"]["creationTimestamp"] = OLD
    content = {"kind": "VolumeSnapshotContent", "metadata": {"name": "one"}}
    given = content | {"spec": {"driver": "csi.kube3fs.io", "source": {"snapshotHandle": "given"}}}
    made = content | {
        "metadata": {"name": "two"},
        "spec": {"driver": "csi.kube3fs.io", "source": {"volumeHandle": "pvc-1"}},
        "status": {"snapshotHandle": "made"},
    }
    found = seen(*snapshots, given, made)
    assert "1 snapshot (left on node-a): kubectl delete tfss NAME" in found.message


@pytest.mark.parametrize(
    "bodies",
    [
        pytest.param([Make.volume(created=NEW)], id="just made"),
        pytest.param([Make.volume(created=OLD, deleting=True)], id="being deleted"),
        pytest.param([Make.volume(created=OLD), Make.persistent_volume()], id="claimed"),
        pytest.param([], id="none"),
    ],
)
def test_others_are_no_news(bodies: list[Any]) -> None:
    """What is young, on its way out or claimed is as it should be."""
    assert seen(*bodies).status == "True"


def test_another_drivers_persistent_volume_is_no_claim() -> None:
    """The same handle there is another volume."""
    found = seen(Make.volume(created=OLD), Make.persistent_volume(driver="other.io"))
    assert found.status == "False"


def test_the_next_look_comes_when_a_volume_gets_old() -> None:
    """Nothing happens to a volume that is left behind, so nothing else brings the cluster back."""
    world = world_of([Make.cluster(), Make.volume(created=NEW)])
    assert claims.next_look(CLUSTER, world, NOW) == 6 * 60
    assert claims.next_look(CLUSTER, world_of([Make.cluster(), Make.volume(created=OLD)]), NOW) is None
