"""The models as programs use them, and the schema converter's refusals."""

import datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from kube3fs_crds import Condition, StorageCluster, StorageNode, StorageSnapshot, StorageVolume, now
from kube3fs_crds.base import MESSAGE_LIMIT
from kube3fs_crds.schema import NotStructuralError, structural


def volume(**spec: Any) -> dict[str, Any]:
    """A StorageVolume as an API client returns it."""
    body = {
        "nodeName": "node-a",
        "clusterRef": {"namespace": "team", "name": "demo"},
        "capacityBytes": 1 << 30,
    }
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageVolume",
        "metadata": {"name": "pvc-1", "managedFields": [{"manager": "x"}]},
        "spec": body | spec,
    }


def test_an_object_survives_the_round_trip() -> None:
    """What was read is written back the same, also metadata that we have no name for."""
    body = volume(source={"snapshot": "snap-1"})
    again = StorageVolume.model_validate(body).as_object()
    assert again["spec"] == body["spec"]
    assert again["metadata"]["managedFields"] == [{"manager": "x"}]


def test_unknown_fields_are_ignored() -> None:
    """An older reader understands an object that a newer writer made."""
    assert StorageVolume.model_validate(volume(later="thing")).spec.capacity_bytes == 1 << 30


def test_a_kind_is_not_taken_for_another() -> None:
    """A StorageVolume does not validate as a StorageSnapshot."""
    with pytest.raises(ValidationError, match="StorageSnapshot"):
        StorageSnapshot.model_validate(volume())


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"capacityBytes": -1}, id="negative"),
        pytest.param({"capacityBytes": "1Gi"}, id="quantity-for-bytes"),
        pytest.param({"nodeName": ""}, id="no-node"),
        pytest.param({"clusterRef": {"name": "demo"}}, id="no-namespace"),
        pytest.param({"source": {"snapshot": "x" * 254}}, id="name-too-long"),
    ],
)
def test_a_wrong_spec_is_refused(spec: dict[str, Any]) -> None:
    """Types and bounds hold in the models as they do in the API server."""
    with pytest.raises(ValidationError):
        StorageVolume.model_validate(volume(**spec))


def test_defaults() -> None:
    """A minimal cluster keeps its volumes; a node starts with nothing to serve."""
    cluster = StorageCluster.model_validate(
        {"metadata": {"name": "demo"}, "spec": {"engine": {"embedded": {"path": "/var/lib/kube3fs/demo"}}}}
    )
    assert cluster.spec.deletion_policy == "Retain"
    assert cluster.spec.engine.embedded is not None
    assert cluster.spec.engine.embedded.node_selector == {}
    assert StorageNode.model_validate({"metadata": {"name": "node-a"}}).spec.clusters == []


def test_a_long_message_is_cut_not_refused() -> None:
    """A status write never fails because an error text was long."""
    cut = Condition(
        type="Ready", status="False", last_transition_time=now(), reason="Failed", message="x" * 9000
    )
    assert len(cut.message) == MESSAGE_LIMIT


def test_times_have_whole_seconds_in_utc() -> None:
    """Times read as metav1.Time writes them."""
    moment = now()
    assert (moment.microsecond, moment.tzinfo) == (0, datetime.UTC)
    body = Condition(
        type="Ready", status="True", last_transition_time=moment, reason="Ok", message=""
    ).as_object()
    assert body["lastTransitionTime"].endswith("Z")


class Union(BaseModel):
    either: int | str


class Anything(BaseModel):
    free: Any


class Above(BaseModel):
    pair: tuple[int, int]


@pytest.mark.parametrize(
    ("model", "where"),
    [
        (Union, "Union.either: a union"),
        (Anything, "Anything.free: no type"),
        (Above, "Above.pair: prefixItems"),
    ],
)
def test_what_a_crd_cannot_say_is_refused(model: type[BaseModel], where: str) -> None:
    """The generator names the field instead of writing a schema that means something else."""
    with pytest.raises(NotStructuralError, match=where):
        structural(model)
