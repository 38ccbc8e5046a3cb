"""What a user sees at `kubectl apply`: the API server's answer to good and bad objects of our kinds."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from .kube import Body, Refused, apply, kubectl

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def cluster(name: str = "demo", path: str = "/var/lib/kube3fs/demo", **spec: Any) -> Body:
    engine = {"embedded": {"path": path, **spec.pop("embedded", {})}}
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageCluster",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"engine": engine, **spec},
    }


def volume(**spec: Any) -> Body:
    ref = {"namespace": "default", "name": "demo"}
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageVolume",
        "metadata": {"name": "pvc-table"},
        "spec": {"nodeName": "node-a", "clusterRef": ref, "capacityBytes": 1 << 30, **spec},
    }


def snapshot(**spec: Any) -> Body:
    ref = {"namespace": "default", "name": "demo"}
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageSnapshot",
        "metadata": {"name": "snap-table"},
        "spec": {"nodeName": "node-a", "volumeName": "pvc-table", "clusterRef": ref, **spec},
    }


def node(clusters: list[Body]) -> Body:
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageNode",
        "metadata": {"name": "node-table"},
        "spec": {"clusters": clusters},
    }


def without(body: Body, *path: str) -> Body:
    """The object without one field."""
    body = copy.deepcopy(body)
    at = body
    for name in path[:-1]:
        at = at[name]
    del at[path[-1]]
    return body


BAD = {
    "path-relative": (cluster(path="data"), "spec.engine.embedded.path", "path must be absolute"),
    "path-root": (cluster(path="/"), "spec.engine.embedded.path", "path must be absolute and not the root"),
    "path-trailing-slash": (cluster(path="/data/"), "path", "path must be clean"),
    "path-double-slash": (cluster(path="/data//x"), "path", "path must be clean"),
    "path-dot": (cluster(path="/data/./x"), "path", "path must be clean"),
    "path-dotdot": (cluster(path="/data/../etc"), "path", "path must be clean"),
    "path-space": (cluster(path="/my data"), "path", "letters, digits and . _ - / only"),
    "path-newline": (cluster(path="/data\nx"), "path", "letters, digits and . _ - / only"),
    "path-too-long": (cluster(path="/" + "x" * 600), "path", "may not be more than 512"),
    "path-missing": (
        without(cluster(), "spec", "engine", "embedded", "path"),
        "path",
        "missing required field",
    ),
    "path-number": (cluster(path=7), "path", "must be of type string"),  # type: ignore[arg-type]
    "no-engine-block": (
        without(cluster(), "spec", "engine", "embedded"),
        "engine",
        "set exactly one engine block",
    ),
    "no-engine": (without(cluster(), "spec", "engine"), "engine", "missing required field"),
    "no-spec": (without(cluster(), "spec"), "spec", "missing required field"),
    "unknown-engine": (
        {**cluster(), "spec": {"engine": {"threefs": {}}}},
        "spec.engine",
        'unknown field "threefs"',
    ),
    "unknown-field": (cluster(color="red"), "spec", 'unknown field "color"'),
    "selector-bad-key": (
        cluster(embedded={"nodeSelector": {"no spaces": "x"}}),
        "nodeSelector",
        "each key must be a label key",
    ),
    "selector-bad-value": (
        cluster(embedded={"nodeSelector": {"disk": "-fast"}}),
        "nodeSelector",
        "each value must be a label value",
    ),
    "selector-long-value": (
        cluster(embedded={"nodeSelector": {"disk": "x" * 64}}),
        "nodeSelector",
        "may not be more than 63",
    ),
    "selector-too-many": (
        cluster(embedded={"nodeSelector": {f"k{i}": "x" for i in range(17)}}),
        "nodeSelector",
        "must have at most 16 items",
    ),
    "deletion-policy": (
        cluster(deletionPolicy="Keep"),
        "deletionPolicy",
        'supported values: "Retain", "Delete"',
    ),
    "class-name-upper": (cluster(storageClassName="Fast"), "storageClassName", "must be a DNS subdomain"),
    "class-name-dots": (cluster(storageClassName="a..b"), "storageClassName", "must be a DNS subdomain"),
    "class-name-empty": (cluster(storageClassName=""), "storageClassName", "should be at least 1"),
    "name-with-dot": (cluster(name="a.b"), "", "metadata.name must have at most 63 characters and no dots"),
    "name-too-long": (cluster(name="x" * 64), "", "metadata.name must have at most 63 characters"),
    "size-zero": (volume(capacityBytes=0), "capacityBytes", "capacityBytes must be more than 0"),
    "size-negative": (volume(capacityBytes=-1), "capacityBytes", "greater than or equal to 0"),
    "size-quantity": (volume(capacityBytes="1Gi"), "capacityBytes", 'expected "integer"'),
    "size-huge": (volume(capacityBytes=2**62 + 1), "capacityBytes", "less than or equal to"),
    "source-none": (volume(source={}), "source", "set exactly one of source.snapshot and source.volume"),
    "source-both": (
        volume(source={"snapshot": "a", "volume": "b"}),
        "source",
        "set exactly one of source.snapshot and source.volume",
    ),
    "volume-without-node": (without(volume(), "spec", "nodeName"), "nodeName", "missing required field"),
    "volume-empty-node": (volume(nodeName=""), "nodeName", "should be at least 1"),
    "volume-without-cluster": (
        without(volume(), "spec", "clusterRef"),
        "clusterRef",
        "missing required field",
    ),
    "volume-half-cluster": (volume(clusterRef={"name": "demo"}), "namespace", "missing required field"),
    "snapshot-without-volume": (
        without(snapshot(), "spec", "volumeName"),
        "volumeName",
        "missing required field",
    ),
    "snapshot-long-volume": (snapshot(volumeName="x" * 254), "volumeName", "may not be more than 253"),
    "node-bad-path": (
        node([{"namespace": "default", "name": "demo", "path": "data"}]),
        "path",
        "path must be absolute",
    ),
    "node-twice-the-same": (
        node([{"namespace": "default", "name": "demo", "path": f"/{i}"} for i in (1, 2)]),
        "spec.clusters[1]",
        "Duplicate value",
    ),
}


@pytest.mark.parametrize(("body", "field", "message"), BAD.values(), ids=BAD.keys())
def test_a_bad_object_is_refused_with_what_to_change(body: Body, field: str, message: str) -> None:
    """The answer names the field and says what is wrong with it."""
    with pytest.raises(Refused) as refusal:
        apply(body, dry_run=True)
    text = str(refusal.value)
    assert message in text
    assert field in text


CHANGES = {
    "path": (
        cluster("fixed"),
        cluster("fixed", path="/elsewhere"),
        "path cannot change, because volumes lie there",
    ),
    "class-name": (
        cluster("fixed", storageClassName="a"),
        cluster("fixed", storageClassName="b"),
        "storageClassName cannot change, because claims refer to it",
    ),
    "class-name-added": (
        cluster("fixed"),
        cluster("fixed", storageClassName="b"),
        "storageClassName cannot change, because claims refer to it",
    ),
    "class-name-removed": (
        cluster("fixed", storageClassName="a"),
        cluster("fixed"),
        "storageClassName cannot change, because claims refer to it",
    ),
    "volume-node": (volume(), volume(nodeName="node-b"), "nodeName cannot change"),
    "volume-cluster": (
        volume(),
        volume(clusterRef={"namespace": "default", "name": "other"}),
        "clusterRef cannot change",
    ),
    "volume-shrinks": (volume(), volume(capacityBytes=1 << 20), "capacityBytes can only grow"),
    "volume-source-added": (volume(), volume(source={"volume": "x"}), "source cannot change"),
    "volume-source-changed": (
        volume(source={"volume": "x"}),
        volume(source={"volume": "y"}),
        "source cannot change",
    ),
    "snapshot": (snapshot(), snapshot(volumeName="other"), "a StorageSnapshot's spec cannot change"),
}


@pytest.mark.parametrize(("before", "after", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_forbidden_change_is_refused(before: Body, after: Body, message: str) -> None:
    """Fields on which data depends keep their value, and the answer says what to do instead."""
    kind, name = before["kind"], before["metadata"]["name"]
    apply(before)
    try:
        with pytest.raises(Refused) as refusal:
            apply(after)
        assert message in str(refusal.value)
    finally:
        kubectl("delete", kind, name)


ALLOWED = {
    "selector": (cluster("free"), cluster("free", embedded={"nodeSelector": {"disk": "fast"}})),
    "deletion-policy": (cluster("free"), cluster("free", deletionPolicy="Delete")),
    "volume-grows": (volume(), volume(capacityBytes=2 << 30)),
}


@pytest.mark.parametrize(("before", "after"), ALLOWED.values(), ids=ALLOWED.keys())
def test_an_ordinary_change_is_taken(before: Body, after: Body) -> None:
    """What may change can be changed."""
    apply(before)
    try:
        apply(after)
    finally:
        kubectl("delete", before["kind"], before["metadata"]["name"])


def test_volumes_are_listed_by_node() -> None:
    """An agent asks for its own node's volumes only."""
    apply(volume())
    try:
        mine = kubectl("get", "tfv", "--field-selector=spec.nodeName=node-a", "-o", "name")
        other = kubectl("get", "tfv", "--field-selector=spec.nodeName=node-b", "-o", "name")
    finally:
        kubectl("delete", "tfv", "pvc-table")
    assert mine.split() == ["storagevolume.kube3fs.io/pvc-table"]
    assert not other.split()


def test_one_word_lists_everything_of_ours() -> None:
    """`kubectl get kube3fs` shows every kind."""
    apply(volume())
    try:
        assert "storagevolume.kube3fs.io/pvc-table" in kubectl("get", "kube3fs", "-A", "-o", "name")
    finally:
        kubectl("delete", "tfv", "pvc-table")


OURS = {
    f"{path.parent.name}-{number}": body
    for path in sorted(EXAMPLES.rglob("*.yaml"))
    for number, body in enumerate(yaml.safe_load_all(path.read_text()))
    if body and body.get("apiVersion", "").startswith("kube3fs.io/")
}


def test_there_are_examples() -> None:
    """The next test has something to try."""
    assert OURS


@pytest.mark.parametrize("body", OURS.values(), ids=OURS.keys())
def test_every_example_is_taken(body: Body) -> None:
    """An object of ours in an example is admitted as it stands."""
    apply({**body, "metadata": {**body["metadata"], "namespace": "default"}}, dry_run=True)
