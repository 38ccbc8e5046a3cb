"""What a cluster is asked to be, and the addresses that follow from it. Pure."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# All of it lies in network namespaces of the cluster's own: nothing of the machine can be in the way.
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
PODS = "10.244.0.0/16"
NODES = "10.98.0.0/24"
API_PORT = 6443
MAX_NODES = 9


@dataclass(frozen=True)
class Spec:
    """One cluster. Node 1 also carries the control plane, as in kind."""

    name: str
    state: str
    """Its folder: keys, configuration, logs, the nodes' data."""
    programs: str
    """The folder that `build` made."""
    nodes: int = 1
    feature_gates: str = ""
    """As the components' --feature-gates take it: `A=true,B=false`."""
    store: str = ""
    """The folder that `store.ensure` made: the images that every node has."""

    @property
    def folder(self) -> Path:
        return Path(self.state)

    @property
    def bin(self) -> Path:
        return Path(self.programs, "bin")

    @property
    def cgroup(self) -> str:
        """Of every pod of the cluster, below the root of each hierarchy."""
        return f"kube3fs-{self.name}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Spec":
        return cls(**values)


@dataclass(frozen=True)
class Node:
    """One kubelet and its containerd, by its number from 1."""

    number: int

    @property
    def name(self) -> str:
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        return f"10.98.0.{self.number}"

    @property
    def pods(self) -> str:
        """The range of its pods' addresses."""
        return f"10.244.{self.number}.0/24"


def nodes(spec: Spec) -> list[Node]:
    return [Node(number) for number in range(1, spec.nodes + 1)]


FIRST = Node(1)
"""The node with the control plane."""

USERS: dict[str, tuple[str, str]] = {
    # kubeconfig: (user, group). These names carry the roles that Kubernetes itself binds to them.
    "admin": ("admin", "system:masters"),
    "controller-manager": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
    "dns": ("system:coredns", ""),
}


def users(spec: Spec) -> dict[str, tuple[str, str]]:
    """Every kubeconfig of the cluster with its user and group."""
    kubelets = {node.name: (f"system:node:{node.name}", "system:nodes") for node in nodes(spec)}
    return USERS | kubelets
