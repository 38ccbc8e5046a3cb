"""A node whose kubelet is silent: the cluster says so, serves on with the others, and takes it back."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.api.kube import Body, condition, eventually, get, kubectl
from tests.e2e.kube import Namespace
from tests.e2e.kube3fs import claim, of_claim, pod
from tests.e2e.node import process

LOST = "node-2"
GRACE_SECONDS = 50
"""--node-monitor-grace-period of kube-controller-manager, as Kubernetes has it."""


@contextmanager
def silent(node: str) -> Iterator[None]:
    """The node's kubelet does nothing for a while, as if its machine hung."""
    kubelet = process("kubelet", f"--hostname-override={node}").pid
    os.kill(kubelet, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(kubelet, signal.SIGCONT)


def becomes(status: str, seconds: float) -> Body:
    """The cluster's condition NodesReady, once it has this status."""
    return eventually(
        lambda: condition(get("storagecluster", "demo", "default"), "NodesReady"),
        lambda found: found.get("status") == status,
        seconds,
    )


def test_a_lost_node_is_named_and_taken_back(release: str, namespace: Namespace) -> None:
    """While a node is lost the other one makes volumes; when it answers again all is as before."""
    assert len(kubectl("get", "nodes", "-o", "name").split()) == 2, "this test needs --nodes 2"
    becomes("True", 60)
    with silent(LOST):
        lost = becomes("False", GRACE_SECONDS + 40)
        assert lost["reason"] == "NodeNotReady"
        assert f"kubectl describe node {LOST}" in lost["message"]
        namespace.apply([claim("data", "default.demo"), pod("p", {"/data": of_claim("data")})])
        namespace.wait_ready("p")
        namespace.exec("p", "sh", "-c", "echo written > /data/file")
    becomes("True", 60)
    assert namespace.exec("p", "cat", "/data/file") == "written\n"
