"""The chart's life on a real cluster: helm test, upgrade, uninstall, new install. Data outlives all of it."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.api.kube import condition, eventually, get, kubectl
from tests.e2e.release import CHART, EXAMPLES, ROOT, SYSTEM, helm, install, make_cluster

pytestmark = pytest.mark.usefixtures("release")


def test_the_doctor_finds_nothing() -> None:
    """`helm test` passes and says what it looked at."""
    said = helm("test", "kube3fs", "--logs")
    assert said.count("\nok  ") == 5
    assert "FAIL" not in said


def pods(component: str) -> dict[str, int]:
    """Restarts of each pod of a component."""
    items = json.loads(
        kubectl("get", "pods", "-n", SYSTEM, "-l", f"app.kubernetes.io/component={component}", "-o", "json")
    )["items"]
    return {
        item["metadata"]["name"]: sum(c["restartCount"] for c in item["status"].get("containerStatuses", []))
        for item in items
    }


def write_through_a_pod(namespace: str) -> None:
    """A claim with data in it."""
    for name in ("verify.yaml", "claim.yaml", "training-pod.yaml"):
        kubectl("apply", "-n", namespace, "-f", str(EXAMPLES / name))
    finished(namespace, "training-pod")


def finished(namespace: str, pod: str) -> None:
    phase = eventually(
        lambda: (get("pod", pod, namespace) or {}).get("status", {}).get("phase"),
        lambda seen: seen in ("Succeeded", "Failed"),
        120,
    )
    assert phase == "Succeeded", kubectl("logs", "-n", namespace, pod)


READER = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "reader"},
    "spec": {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "fsGroup": 1000,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "main",
                "image": "ghcr.io/kube3fs/client:0.1.0",
                "command": [
                    "sh",
                    "-c",
                    "while sha256sum /data/records.bin >/data/sum && ! test -e /data/stop; do sleep 1; done; "
                    "echo read on to the end",
                ],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }
        ],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "training-data"}}],
    },
}


def test_an_upgrade_keeps_everything_running(restricted: str) -> None:
    """New pods of ours take over while a pod reads; the cluster stays as it was."""
    write_through_a_pod(restricted)
    kubectl("apply", "-n", restricted, "-f", "-", stdin=json.dumps(READER))
    kubectl("wait", "-n", restricted, "--for=condition=Ready", "pod/reader", "--timeout=55s")
    before = pods("operator")
    helm("upgrade", "kube3fs", str(CHART), "--set", "operator.logLevel=DEBUG", "--wait", "--timeout=4m")
    eventually(lambda: sorted(set(before) & set(pods("operator"))), lambda left: not left, 60)
    assert condition(get("storagecluster", "demo", "default"), "Ready")["status"] == "True"
    kubectl("exec", "-n", restricted, "reader", "--", "touch", "/data/stop")
    finished(restricted, "reader")
    assert "read on to the end" in kubectl("logs", "-n", restricted, "reader")
    install()


def test_an_upgrade_from_the_commit_before_keeps_everything(restricted: str, tmp_path: Path) -> None:
    """The chart of the previous commit is upgraded to this one; CRDs too, and no object is lost."""
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "HEAD~1", "charts/kube3fs"],
        capture_output=True,
        check=True,
        timeout=60,
    ).stdout
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=archive, check=True, timeout=60)
    helm("upgrade", "kube3fs", str(tmp_path / "charts/kube3fs"), "--wait", "--timeout=4m")
    write_through_a_pod(restricted)
    claim = get("pvc", "training-data", restricted)
    assert claim
    install()
    assert get("storagevolume", claim["spec"]["volumeName"])
    assert condition(get("storagecluster", "demo", "default"), "Ready")["status"] == "True"


def test_an_uninstall_keeps_volumes_data_and_types(restricted: str) -> None:
    """CRDs and volumes stay, a StorageCluster can be deleted then, and a new install goes on."""
    write_through_a_pod(restricted)
    kubectl("delete", "-n", restricted, "pod/training-pod", "--timeout=55s")
    claim = get("pvc", "training-data", restricted)
    assert claim
    volume = claim["spec"]["volumeName"]
    helm("uninstall", "kube3fs", "--wait", "--timeout=4m")
    try:
        assert get("crd", "storageclusters.kube3fs.io")
        assert get("storagevolume", volume)
        cluster = get("storagecluster", "demo", "default")
        assert cluster
        assert not cluster["metadata"].get("finalizers")
        # The pod of `helm test` stays for its log.
        ours = "app.kubernetes.io/name=kube3fs,app.kubernetes.io/component!=doctor"
        left = kubectl("get", "all,serviceaccounts,roles", "-n", SYSTEM, "-l", ours)
        assert not left.strip()
        kubectl("delete", "storagecluster", "demo", "-n", "default", "--timeout=20s")
    finally:
        install()
        make_cluster()
    kubectl("apply", "-n", restricted, "-f", "-", stdin=json.dumps(READER))
    kubectl("wait", "-n", restricted, "--for=condition=Ready", "pod/reader", "--timeout=55s")
    kubectl("exec", "-n", restricted, "reader", "--", "touch", "/data/stop")
    finished(restricted, "reader")


def test_nothing_of_ours_outside_the_node_plugin_is_privileged() -> None:
    """Only csi-node is; usrbiod has capabilities and no more, the others have none."""
    items = json.loads(
        kubectl("get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=kube3fs", "-o", "json")
    )
    privileged = {
        container["name"]
        for item in items["items"]
        for container in item["spec"]["containers"]
        if container.get("securityContext", {}).get("privileged")
    }
    assert privileged == {"csi-node"}
