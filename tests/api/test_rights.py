"""Who may write what, by the chart's roles and policies on the real API server.

The programs are impersonated with what the API server itself puts into their tokens.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import SYSTEM, rendered
from .kube import Body, Refused, apply, eventually, get, kubectl

NODE_NAME = "authentication.kubernetes.io/node-name"
MINE, OTHER = "rights-a", "rights-b"
REF = {"namespace": "default", "name": "demo"}


def as_node(node: str | None, *arguments: str, stdin: str | None = None) -> str:
    """Kubectl as the node plugin of a node; None: with a token that names none."""
    extra = [f"--as-user-extra={NODE_NAME}={node}"] if node else []
    return kubectl(f"--as=system:serviceaccount:{SYSTEM}:kube3fs-csi-node", *extra, *arguments, stdin=stdin)


def as_operator(*arguments: str) -> str:
    """Kubectl as the operator."""
    return kubectl(f"--as=system:serviceaccount:{SYSTEM}:kube3fs-operator", *arguments)


def volume(name: str, node: str) -> Body:
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageVolume",
        "metadata": {"name": name, "finalizers": ["kube3fs.io/node"]},
        "spec": {"nodeName": node, "clusterRef": REF, "capacityBytes": 1},
    }


def snapshot(name: str, node: str) -> Body:
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageSnapshot",
        "metadata": {"name": name, "finalizers": ["kube3fs.io/node"]},
        "spec": {"nodeName": node, "clusterRef": REF, "volumeName": "any"},
    }


def storage_node(name: str, **spec: Any) -> Body:
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageNode",
        "metadata": {"name": name},
        "spec": spec,
    }


OBJECTS = [
    *(volume(f"volume-{node}", node) for node in (MINE, OTHER)),
    *(snapshot(f"snapshot-{node}", node) for node in (MINE, OTHER)),
    *(storage_node(node) for node in (MINE, OTHER)),
]
TAINTED = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": MINE, "labels": {"disk": "fast"}},
    "spec": {
        "taints": [
            {"key": "gpu", "effect": "NoSchedule"},
            {"key": "kube3fs.io/agent-not-ready", "effect": "NoSchedule"},
        ]
    },
}


@pytest.fixture(scope="module", autouse=True)
def rights() -> Iterator[None]:
    """Roles and policies of the chart, and objects of two nodes."""
    with contextlib.suppress(Refused):
        kubectl("create", "namespace", SYSTEM)
    text = rendered("admission/rights", "csi-node/rbac", "operator/rbac")
    kubectl("apply", "-f", "-", stdin=text)
    apply(*OBJECTS, TAINTED)

    def in_force() -> bool:
        try:
            status_of("storagevolume", f"volume-{OTHER}", MINE)
        except Refused as error:
            return "of its own node only" in str(error)
        return False

    eventually(in_force, bool)
    yield
    kubectl("delete", "-f", "-", "--ignore-not-found", stdin=text)
    kubectl("delete", "node", MINE, "--ignore-not-found")
    for body in OBJECTS:
        kind, name = body["kind"].lower(), body["metadata"]["name"]
        if get(kind, name):
            kubectl("patch", kind, name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
            kubectl("delete", kind, name, "--ignore-not-found")


def status_of(kind: str, name: str, node: str | None) -> None:
    """Write a status as the node plugin of `node`, by server-side apply as it does."""
    body = {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": {"storagevolume": "StorageVolume", "storagesnapshot": "StorageSnapshot"}.get(
            kind, "StorageNode"
        ),
        "metadata": {"name": name},
        "status": {"observedGeneration": 1},
    }
    text = json.dumps(body)
    as_node(
        node, "apply", "--server-side", "--force-conflicts", "--subresource=status", "-f", "-", stdin=text
    )


def names(kind: str, node: str) -> str:
    return node if kind == "storagenode" else f"{kind.removeprefix('storage')}-{node}"


@pytest.mark.parametrize("kind", ["storagenode", "storagevolume", "storagesnapshot"])
def test_a_node_plugin_writes_the_status_of_what_is_its_nodes(kind: str) -> None:
    """And of nothing else, nor without a token that names its node."""
    status_of(kind, names(kind, MINE), MINE)
    with pytest.raises(Refused, match=f"the node plugin of {MINE} may change what is of its own node only"):
        status_of(kind, names(kind, OTHER), MINE)
    with pytest.raises(Refused, match="does not say on which node its pod runs"):
        status_of(kind, names(kind, MINE), None)


@pytest.mark.parametrize("kind", ["storagevolume", "storagesnapshot"])
def test_a_node_plugin_takes_only_the_finalizers_of_its_node(kind: str) -> None:
    """What is wanted of a volume stays as it is."""
    patch = '{"metadata":{"finalizers":null}}'
    with pytest.raises(Refused, match="of its own node only"):
        as_node(MINE, "patch", kind, names(kind, OTHER), "--type=merge", "-p", patch)
    as_node(MINE, "patch", kind, names(kind, MINE), "--type=merge", "-p", patch)


def test_a_node_plugin_does_not_change_what_is_wanted() -> None:
    """Not even of its own volume."""
    with pytest.raises(Refused, match="may not change the spec"):
        as_node(
            OTHER,
            "patch",
            "storagevolume",
            f"volume-{OTHER}",
            "--type=merge",
            "-p",
            '{"spec":{"capacityBytes":9}}',
        )


def test_a_node_plugin_makes_its_own_storage_node_only() -> None:
    """And serves nothing that nobody asked it to."""
    for name, spec, words in (
        ("rights-c", {}, "of its own node only"),
        (
            "rights-d",
            {"clusters": [{"namespace": "default", "name": "demo", "path": "/data/x"}]},
            "may not change the spec",
        ),
    ):
        node = "rights-d" if name == "rights-d" else MINE
        with pytest.raises(Refused, match=words):
            as_node(node, "create", "-f", "-", stdin=json.dumps(storage_node(name, **spec)))
    text = json.dumps(storage_node("rights-d"))
    as_node("rights-d", "create", "-f", "-", stdin=text)
    kubectl("delete", "storagenode", "rights-d")


def test_a_node_plugin_renews_its_own_lease_only() -> None:
    """Neither another node's, nor that by which the operator leads."""

    def renew(node: str, name: str, holder: str) -> None:
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": SYSTEM},
            "spec": {"holderIdentity": holder, "leaseDurationSeconds": 40},
        }
        as_node(node, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(body))

    renew(MINE, f"kube3fs-node.{MINE}", MINE)
    for name, holder in (
        (f"kube3fs-node.{OTHER}", OTHER),
        (f"kube3fs-node.{OTHER}", MINE),
        (f"kube3fs-node.{MINE}", OTHER),
        ("kube3fs-operator", MINE),
    ):
        with pytest.raises(Refused, match="of its own node only"):
            renew(MINE, name, holder)
    kubectl("delete", "lease", f"kube3fs-node.{MINE}", "-n", SYSTEM)


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param([{"op": "remove", "path": "/spec/taints/0"}], id="another taint"),
        pytest.param(
            [{"op": "add", "path": "/spec/taints/-", "value": {"key": "x", "effect": "NoExecute"}}], id="add"
        ),
        pytest.param([{"op": "add", "path": "/spec/unschedulable", "value": True}], id="cordon"),
        pytest.param([{"op": "add", "path": "/metadata/labels/disk", "value": "slow"}], id="label"),
        pytest.param([{"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}}], id="annotation"),
    ],
)
def test_the_operator_takes_our_taint_from_a_node_and_nothing_else(patch: list[Body]) -> None:
    """The rest of every Node is not its business."""
    with pytest.raises(Refused, match="may take the taint"):
        as_operator("patch", "node", MINE, "--type=json", "-p", json.dumps(patch))


def test_the_operator_takes_our_taint_from_a_node() -> None:
    """By the patch that it sends."""
    path = "/spec/taints/1"
    patch = [
        {"op": "test", "path": f"{path}/key", "value": "kube3fs.io/agent-not-ready"},
        {"op": "remove", "path": path},
    ]
    as_operator("patch", "node", MINE, "--type=json", "-p", json.dumps(patch))
    taints = (get("node", MINE) or {})["spec"]["taints"]
    assert "kube3fs.io/agent-not-ready" not in [taint["key"] for taint in taints]
    assert "gpu" in [taint["key"] for taint in taints]


@pytest.fixture
def class_names() -> Iterator[None]:
    """The policy of class names, with one that is reserved."""
    text = rendered("admission/class-names", **{"storageClassNames.fast": "default"})
    kubectl("apply", "-f", "-", stdin=text)
    eventually(lambda: made("default", "another"), lambda words: "must begin with" in words)
    yield
    kubectl("delete", "-f", "-", stdin=text)


def made(namespace: str, class_name: str | None) -> str:
    """What the API server says to a cluster with this class name; '' when it takes it."""
    spec: Body = {"engine": {"embedded": {"path": "/data/x"}}}
    if class_name:
        spec["storageClassName"] = class_name
    body = {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageCluster",
        "metadata": {"namespace": namespace, "name": "named"},
        "spec": spec,
    }
    try:
        apply(body, dry_run=True)
    except Refused as error:
        return str(error)
    return ""


@pytest.mark.usefixtures("class_names")
def test_a_class_name_begins_with_its_namespace_or_is_reserved(namespace: str) -> None:
    """Another namespace's default name, and a name for all, are refused with what to write."""
    for mine in (None, f"{namespace}.named", f"{namespace}.any.thing"):
        assert made(namespace, mine) == ""
    assert made("default", "fast") == ""
    for others in ("default.demo", "fast", "standard", f"{namespace}x.named", namespace):
        words = made(namespace, others)
        assert f'"{others}" must begin with "{namespace}."' in words
        assert "storageClassNames of the chart" in words
