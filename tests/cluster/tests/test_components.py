"""Flags and configuration files, from a Spec."""

import json
import tomllib

import pytest

from tests.cluster import components
from tests.cluster.spec import Node, Spec, nodes, users

SPEC = Spec(name="t", state="/state/t", programs="/programs", nodes=2, feature_gates="Some=true,Other=false")


def test_nodes_share_no_address() -> None:
    """Every node has its own name, address and pod range."""
    both = nodes(SPEC)
    assert [node.name for node in both] == ["node-1", "node-2"]
    assert len({node.address for node in both} | {node.pods for node in both}) == 4


def test_every_kubelet_is_its_own_user() -> None:
    """Each kubelet's user is the one that the Node authorizer knows, in the group that it wants."""
    assert users(SPEC)["node-2"] == ("system:node:node-2", "system:nodes")


def test_nobody_but_admin_is_a_master() -> None:
    """No component has more rights than the role that Kubernetes binds to its name."""
    assert [name for name, (_, group) in users(SPEC).items() if group == "system:masters"] == ["admin"]


@pytest.mark.parametrize(
    "argv",
    [components.apiserver(SPEC), components.controller_manager(SPEC), components.scheduler(SPEC)],
    ids=lambda argv: argv[0],
)
def test_feature_gates_reach_the_control_plane(argv: list[str]) -> None:
    """Feature gates are given to each component of the control plane."""
    assert "--feature-gates=Some=true,Other=false" in argv


def test_feature_gates_reach_the_node() -> None:
    """Feature gates are given to kubelet and kube-proxy."""
    for config in (components.kubelet_config(SPEC, Node(1)), components.proxy_config(SPEC)):
        assert json.loads(config)["featureGates"] == {"Some": True, "Other": False}


@pytest.mark.parametrize("text", ["Some", "Some=yes", "=true", "Some=true;Other=true"])
def test_malformed_feature_gates_are_refused(text: str) -> None:
    """What is not Name=true or Name=false is refused with a sentence that says so."""
    with pytest.raises(ValueError, match="write Name=true or Name=false"):
        components.feature_gates(text)


def test_admission_and_authorization_are_those_of_production() -> None:
    """RBAC, the Node authorizer and NodeRestriction are on."""
    argv = components.apiserver(SPEC)
    assert "--authorization-mode=Node,RBAC" in argv
    assert "--enable-admission-plugins=NodeRestriction" in argv


def test_containerd_config_is_valid_and_of_this_node() -> None:
    """Containerd's configuration parses, and names the node's own folders."""
    config = tomllib.loads(components.containerd_config(SPEC, Node(2)))
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    assert config["root"] == "/state/t/node-2/containerd"
    assert runtime["cni"]["conf_dir"] == "/state/t/node-2/cni"


def test_kubelets_do_not_share_a_cgroup() -> None:
    """Two kubelets on one machine keep their pods apart."""
    roots = {json.loads(components.kubelet_config(SPEC, node))["cgroupRoot"] for node in nodes(SPEC)}
    assert roots == {"/kube3fs-t/node-1", "/kube3fs-t/node-2"}


def test_spec_survives_its_file() -> None:
    """A Spec that is written and read again is the same."""
    assert Spec.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
