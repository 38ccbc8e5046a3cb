"""Processes that die, pods that go by force, devices: nothing is lost and nothing is left."""

import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.kube import Cluster, ExecFailed, Namespace, wait_for
from tests.e2e.kube3fs import CLASSES, NODE, SYSTEM, claim, inline, installed, kill, of_claim, pod
from tests.e2e.load import has_gone_on, loaded_pod, progress
from tests.e2e.node import mounts, nothing_left


@pytest.fixture(scope="module", autouse=True)
def _kube3fs(cluster: Cluster) -> Iterator[None]:
    with installed(cluster):
        yield


def is_restarted(cluster: Cluster, container: str, before: int) -> bool:
    return restarted(cluster, container) > before


def restarted(cluster: Cluster, container: str) -> int:
    """How often the container was started again on the node."""
    pods = cluster.core.list_namespaced_pod(
        SYSTEM, label_selector="app.kubernetes.io/component=csi-node"
    ).items
    (pod,) = [one for one in pods if one.spec.node_name == NODE and not one.metadata.deletion_timestamp]
    return sum(one.restart_count for one in pod.status.container_statuses if one.name == container)


@pytest.mark.parametrize("victim", ["usrbiod", "csi-node"])
def test_a_killed_process_under_load_costs_no_byte(
    cluster: Cluster, namespace: Namespace, victim: str
) -> None:
    """SIGKILL three times while a pod writes and checks: no error, no wrong byte, it goes on each time."""
    loaded_pod(namespace)
    for _ in range(3):
        before = wait_for("the load runs", lambda: progress(namespace) or None)
        restarts = restarted(cluster, victim)
        kill(victim)
        wait_for("it was killed", partial(is_restarted, cluster, victim, restarts), 90)
        wait_for("the load goes on", partial(has_gone_on, namespace, before), 90)
        daemonset = ("-n", SYSTEM, "rollout", "status", "daemonset/kube3fs-csi-node", "--timeout=90s")
        subprocess.run(["kubectl", *daemonset], check=True, capture_output=True, timeout=100)
    namespace.exec("load", "touch", "/dev/shm/stop")
    assert namespace.wait_done("load") == "good\n"


def test_an_upgrade_under_load_costs_no_byte(cluster: Cluster, namespace: Namespace) -> None:
    """The DaemonSet's pod is replaced while a pod writes and checks: the successor takes the mount over."""
    loaded_pod(namespace)
    before = wait_for("the load runs", lambda: progress(namespace) or None)
    for command in (("restart",), ("status", "--timeout=120s")):
        argv = ["kubectl", "-n", SYSTEM, "rollout", command[0], "daemonset/kube3fs-csi-node", *command[1:]]
        subprocess.run(argv, check=True, capture_output=True, timeout=130)
    wait_for("the load goes on", partial(has_gone_on, namespace, before))
    namespace.exec("load", "touch", "/dev/shm/stop")
    assert namespace.wait_done("load") == "good\n"


def test_a_pod_deleted_by_force_leaves_nothing(namespace: Namespace) -> None:
    """Mounts, tmpfs and records of a pod that was deleted with grace period 0 are gone soon after."""
    volumes = {"/data": of_claim("data"), "/dev/shm": inline("shm", size="16Mi"), "/opt/x": inline("client")}
    namespace.apply([claim("data", CLASSES["directory"]), pod("p", volumes)])
    namespace.wait_ready("p")
    uid = namespace.pod("p").metadata.uid
    assert len(mounts(uid)) >= 4
    namespace.cluster.core.delete_namespaced_pod("p", namespace.name, grace_period_seconds=0)
    wait_for("nothing is left", lambda: nothing_left(uid))


def test_a_pod_gets_the_device_that_it_asked_for(cluster: Cluster, namespace: Namespace) -> None:
    """With a stand-in for a card, a pod that asks opens its device, and one that does not has none."""

    def known() -> bool:
        return bool(cluster.core.read_node(NODE).status.allocatable.get("kube3fs.io/rdma") == "1")

    wait_for("the node offers a device", known)
    asks = {"resources": {"limits": {"kube3fs.io/rdma": "1"}}}
    namespace.apply([pod("asks", {}, container=asks), pod("does-not", {})])
    namespace.wait_ready("asks", "does-not")
    read = "head -c 4 /dev/infiniband/uverbs0 | od -An -tx1"
    assert namespace.exec("asks", "sh", "-c", read).split() == ["00"] * 4
    with pytest.raises(ExecFailed, match="No such file"):
        namespace.exec("does-not", "ls", "/dev/infiniband")
