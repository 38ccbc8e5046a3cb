"""A node whose kubelet ends, and one that is drained: pods keep their volumes, or leave nothing behind."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.api.kube import kubectl
from tests.e2e.kube import Cluster, Manifest, Namespace, wait_for
from tests.e2e.kube3fs import CLASSES, NODE, claim, inline, installed, of_claim, pod
from tests.e2e.load import has_gone_on, loaded_pod, progress
from tests.e2e.node import kubelet, mounts, nothing_left

VOLUMES = {"/data": of_claim("data"), "/dev/shm": inline("shm", size="16Mi")}


@pytest.fixture(scope="module", autouse=True)
def _kube3fs(cluster: Cluster) -> Iterator[None]:
    with installed(cluster):
        yield


def test_volumes_outlive_the_kubelet(namespace: Namespace) -> None:
    """A killed kubelet costs a busy pod nothing; the next one mounts for new pods, and unmounts."""
    loaded_pod(namespace)
    before = wait_for("the load runs", lambda: progress(namespace) or None)
    uid = namespace.pod("load").metadata.uid
    mounted, killed = mounts(uid), kubelet().pid
    os.kill(killed, signal.SIGKILL)
    wait_for("the kubelet is back", partial(_is_another_kubelet, killed))
    namespace.apply(pod("new", VOLUMES))
    namespace.wait_ready("new")
    assert namespace.exec("new", "ls", "/data/load") == "/data/load\n"
    assert mounts(uid) == mounted
    wait_for("the load goes on", partial(has_gone_on, namespace, before))
    namespace.exec("load", "touch", "/dev/shm/stop")
    assert namespace.wait_done("load") == "good\n"
    namespace.delete(pod("load", {}))
    wait_for("nothing is left", partial(nothing_left, uid))


def test_a_drained_node_has_no_volume_and_gets_it_back(namespace: Namespace) -> None:
    """`kubectl drain` takes the pod with its mounts; after `uncordon` it is back, with its data."""
    namespace.apply([claim("data", CLASSES["directory"]), _deployment(pod("p", VOLUMES))])
    name, uid = wait_for("the pod is Ready", partial(_ready_pod, namespace))
    namespace.exec(name, "sh", "-c", "echo kept > /data/file")
    with _drained():
        wait_for("nothing is left", partial(nothing_left, uid))
    name, other = wait_for("the pod is Ready again", partial(_ready_pod, namespace))
    assert other != uid
    assert namespace.exec(name, "cat", "/data/file") == "kept\n"


def _is_another_kubelet(killed: int) -> bool:
    try:
        return kubelet().pid != killed
    except ValueError:
        raise AssertionError("none runs") from None


@contextmanager
def _drained() -> Iterator[None]:
    """While this lasts no pod but those of DaemonSets is on the node."""
    # --force: earlier tests' pods, which no controller made, may not be gone yet.
    kubectl("drain", NODE, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=50s")
    try:
        yield
    finally:
        kubectl("uncordon", NODE)


def _deployment(template: Manifest) -> Manifest:
    labels = template["metadata"]["labels"]
    spec = {**template["spec"], "restartPolicy": "Always"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "drained"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _ready_pod(namespace: Namespace) -> tuple[str, str]:
    """Name and uid of the deployment's pod."""
    found = namespace.cluster.core.list_namespaced_pod(namespace.name, label_selector="app=p").items
    living = [one for one in found if not one.metadata.deletion_timestamp]
    assert len(living) == 1, f"{len(living)} pods"
    namespace.wait_ready(living[0].metadata.name, seconds=0)
    return living[0].metadata.name, living[0].metadata.uid
