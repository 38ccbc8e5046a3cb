"""Every example of docs/examples runs as it stands, in a restricted namespace."""

import json
from pathlib import Path

import pytest

from tests.api.kube import Body, eventually, get, kubectl
from tests.e2e.release import EXAMPLES

pytestmark = pytest.mark.usefixtures("release")
RIGHT = "all of them right"


def apply(namespace: str, *names: str) -> None:
    for name in ("verify.yaml", *names):
        kubectl("apply", "-n", namespace, "-f", str(EXAMPLES / name))


def finished(namespace: str, pod: str, deadline: float = 120) -> Body:
    """Wait until the pod has succeeded; its messages are in the failure otherwise."""

    def look() -> Body:
        seen = get("pod", pod, namespace) or {}
        return {"phase": seen.get("status", {}).get("phase"), "events": events(namespace, pod)}

    return eventually(look, lambda seen: seen["phase"] in ("Succeeded", "Failed"), deadline)


def events(namespace: str, pod: str) -> str:
    return kubectl("get", "events", "-n", namespace, f"--field-selector=involvedObject.name={pod}")[-1500:]


def logs(namespace: str, pod: str, container: str | None = None) -> str:
    return kubectl("logs", "-n", namespace, pod, *(["-c", container] if container else []))


def test_training_pod(restricted: str) -> None:
    """A claim, a labelled pod, a ring: every record is right."""
    apply(restricted, "claim.yaml", "training-pod.yaml")
    assert finished(restricted, "training-pod")["phase"] == "Succeeded", logs(restricted, "training-pod")
    assert RIGHT in logs(restricted, "training-pod")
    assert "as uid 1000" in logs(restricted, "training-pod")


def test_two_containers(restricted: str) -> None:
    """Two containers share the memory, the third has its own."""
    apply(restricted, "two-containers.yaml")
    assert finished(restricted, "two-containers")["phase"] == "Succeeded"
    assert RIGHT in logs(restricted, "two-containers", "loader")
    assert "loaded" in logs(restricted, "two-containers", "trainer")
    assert "my own /dev/shm" in logs(restricted, "two-containers", "bystander")


def test_job_with_two_workers(restricted: str) -> None:
    """Both workers read and write one volume at the same time."""
    apply(restricted, "job-two-workers.yaml")
    kubectl("wait", "-n", restricted, "--for=condition=Complete", "job/two-workers", "--timeout=50s")
    said = kubectl("logs", "-n", restricted, "-l", "job-name=two-workers", "--tail=-1")
    assert said.count(RIGHT) == 2


def test_stateful_set(restricted: str) -> None:
    """Each replica has its own volume."""
    apply(restricted, "statefulset.yaml")

    def ready() -> int:
        seen = get("statefulset", "readers", restricted) or {}
        return int(seen.get("status", {}).get("readyReplicas", 0))

    eventually(ready, lambda count: count == 2, 120)
    claims = json.loads(kubectl("get", "pvc", "-n", restricted, "-o", "json"))["items"]
    assert len({claim["spec"]["volumeName"] for claim in claims}) == 2
    assert RIGHT in logs(restricted, "readers-1")


@pytest.mark.parametrize(("file", "pod"), [("scratch.yaml", "scratch"), ("by-hand.yaml", "by-hand")])
def test_inline_volumes(restricted: str, file: str, pod: str) -> None:
    """Volumes that live with the pod, with injection and without."""
    apply(restricted, file)
    assert finished(restricted, pod)["phase"] == "Succeeded", logs(restricted, pod)
    assert RIGHT in logs(restricted, pod)


def test_snapshot_and_restore(restricted: str, snapshots: None) -> None:
    """A new volume has the data of the snapshot."""
    apply(restricted, "claim.yaml", "training-pod.yaml")
    assert finished(restricted, "training-pod")["phase"] == "Succeeded"
    apply(restricted, "snapshot.yaml")
    assert finished(restricted, "restored")["phase"] == "Succeeded"
    assert "8388608 bytes again" in logs(restricted, "restored")


def test_the_demos_pod(restricted: str) -> None:
    """The demo's programs train, compare and survive in the same pod."""
    apply(restricted, "claim.yaml", "demo/trainer.yaml")
    kubectl("wait", "-n", restricted, "--for=condition=Ready", "pod/trainer", "--timeout=55s")

    def python(*arguments: str) -> str:
        return kubectl("exec", "-n", restricted, "trainer", "--", "python3", *arguments)

    accuracy = float(python("/opt/demo/train.py", "/data").split("accuracy ")[1].split()[0])
    assert accuracy > 90
    table = python("/opt/demo/compare.py", "/data", "/plain-fuse").splitlines()
    rates = [float(line.split()[-2].replace(",", "")) for line in table[1:]]
    assert rates[0] < rates[1] < rates[2]
    assert "every byte as written" in python("/opt/demo/steady.py", "/data", "2")


def test_no_example_is_forgotten() -> None:
    """Each file of the folder is tried above or by these tests' fixtures."""
    text = Path(__file__).read_text() + (Path(__file__).parent / "release.py").read_text()
    for path in EXAMPLES.glob("*.yaml"):
        assert path.name in text, path.name


def test_deleting_the_pods_leaves_no_volume(restricted: str) -> None:
    """Claims deleted, the StorageVolumes and their data are gone."""
    apply(restricted, "claim.yaml", "training-pod.yaml")
    assert finished(restricted, "training-pod")["phase"] == "Succeeded"
    claim = get("pvc", "training-data", restricted)
    assert claim
    kubectl("delete", "-n", restricted, "pod/training-pod", "pvc/training-data", "--timeout=50s")
    eventually(lambda: get("storagevolume", claim["spec"]["volumeName"]), lambda seen: seen is None, 60)
