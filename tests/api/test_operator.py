"""The operator as a process against a real API server: applied, killed, replaced, deleted under it.

The node plugin is played by the test, which writes StorageNode status as the plugin does.
"""

import contextlib
import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kube3fs_operator.faults import EXIT_STATUS

from .kube import Body, Refused, apply, condition, eventually, get, kubectl, set_status

NODE = "storage-a"
GIB = 1 << 30


class Operator:
    """One operator process."""

    def __init__(self, log: Path, identity: str = "one", **environment: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kube3fs_operator"],
                env={
                    **os.environ,
                    "KUBE3FS_IDENTITY": identity,
                    "KUBE3FS_NAMESPACE": "default",
                    "KUBE3FS_ADDRESS": "127.0.0.1",
                    "KUBE3FS_PORT": "0",
                    **environment,
                },
                stdout=output,
                stderr=output,
            )

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(30)


@pytest.fixture
def operators(tmp_path: Path) -> Iterator[Any]:
    """Starts operators and ends those that still run after the test."""
    started: list[Operator] = []

    def start(identity: str = "one", **environment: str) -> Operator:
        operator = Operator(tmp_path / f"{identity}.log", identity, **environment)
        started.append(operator)
        return operator

    yield start
    for operator in started:
        if operator.process.poll() is None:
            operator.kill()
        print(operator.log.read_text())
    kubectl("delete", "lease", "kube3fs-operator", "-n", "default", "--ignore-not-found")


@pytest.fixture
def node() -> Iterator[str]:
    """A Kubernetes node whose plugin has come up."""
    with_ready_node(NODE)
    with beating(NODE):
        yield NODE
    forget_node(NODE)


def with_ready_node(name: str) -> None:
    """Make the node, and its StorageNode as the plugin does."""
    apply(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"disk": "fast"}}},
        {"apiVersion": "kube3fs.io/v1alpha1", "kind": "StorageNode", "metadata": {"name": name}},
    )
    heartbeat(name)
    report(name)


@contextlib.contextmanager
def beating(name: str) -> Iterator[None]:
    """Renew the kubelet's lease meanwhile: without that the node controller takes the node for lost."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(10):
            with contextlib.suppress(Refused):
                renew_lease(name)

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        yield
    finally:
        over.set()
        heart.join()


def renew_lease(name: str) -> str:
    """What the kubelet does every 10 seconds. Returns the time."""
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    apply(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": "kube-node-lease", "name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 3600, "renewTime": moment},
        }
    )
    return moment


def heartbeat(name: str) -> None:
    """Say that the kubelet is well, as the kubelet does: a lease, and the condition Ready."""
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "KubeletReady",
        "message": "",
        "lastHeartbeatTime": renew_lease(name)[:19] + "Z",
    }
    set_status("node", name, {"conditions": [ready]})


def report(
    name: str, *clusters: str, available: int = 40 * GIB, ready: bool = True, message: str = ""
) -> None:
    """What the plugin reports: these clusters, given as namespace/name, are served."""
    entries = []
    for cluster in clusters:
        namespace, _, short = cluster.partition("/")
        entries.append(
            {
                "namespace": namespace,
                "name": short,
                "path": f"/var/lib/kube3fs/{short}",
                "ready": ready,
                "message": message,
                "backend": "directory",
                "features": {"quota": False, "reflink": False, "snapshot": False},
                "capacityBytes": 100 * GIB,
                "availableBytes": available,
            }
        )
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    serving = {
        "type": "Ready",
        "status": "True",
        "reason": "Serving",
        "message": "",
        "lastTransitionTime": now,
    }
    set_status("storagenode", name, {"conditions": [serving], "clusters": entries})


def forget_node(name: str) -> None:
    """Take everything of the node away."""
    kubectl("delete", "node", name, "--ignore-not-found")
    kubectl("delete", "storagenode", name, "--ignore-not-found")


def cluster(namespace: str, name: str = "demo", **spec: Any) -> Body:
    embedded: Body = {"path": f"/var/lib/kube3fs/{name}"}
    embedded |= {"nodeSelector": spec.pop("selector", {"disk": "fast"})}
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageCluster",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"engine": {"embedded": embedded}, **spec},
    }


def volume(namespace: str, name: str, node: str = NODE) -> Body:
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageVolume",
        "metadata": {"name": name, "finalizers": ["kube3fs.io/node"]},
        "spec": {
            "nodeName": node,
            "clusterRef": {"namespace": namespace, "name": "demo"},
            "capacityBytes": GIB,
        },
    }


def told(node: str) -> list[Body]:
    """What the operator wants the node to serve."""
    clusters: list[Body] = (get("storagenode", node) or {}).get("spec", {}).get("clusters", [])
    return clusters


def storage_cluster(namespace: str, name: str = "demo") -> Body | None:
    return get("storagecluster", name, namespace)


def becomes(namespace: str, kind: str, status: str, reason: str | None = None, deadline: float = 45) -> Body:
    """Wait for a condition of the cluster; returns it."""
    return eventually(
        lambda: condition(storage_cluster(namespace), kind),
        lambda c: c.get("status") == status and reason in (None, c.get("reason")),
        deadline,
    )


def release_volume(name: str) -> None:
    """What the node plugin does when a volume was deleted: delete the data, drop its finalizer."""
    patch = json.dumps([{"op": "remove", "path": "/metadata/finalizers"}])
    kubectl("patch", "storagevolume", name, "--type=json", "-p", patch)


@pytest.fixture
def tidy(namespace: str) -> Iterator[str]:
    """The namespace, whose clusters are taken away afterwards even where no operator runs any more."""
    yield namespace
    none = '{"metadata":{"finalizers":null}}'
    for kind, where in (("storagecluster", ["-n", namespace]), ("storagevolume", [])):
        bodies = json.loads(kubectl("get", kind, *where, "-o", "json"))["items"]
        held = [body["metadata"]["name"] for body in bodies if body["metadata"].get("finalizers")]
        if held:
            kubectl("patch", kind, *held, *where, "--type=merge", "-p", none)
        kubectl("delete", kind, "--all", *where, "--wait=false")
    for name in kubectl(
        "get", "storageclass", "-l", f"kube3fs.io/cluster-namespace={namespace}", "-o", "name"
    ).split():
        kubectl("delete", name)


def test_a_cluster_becomes_ready(tidy: str, node: str, operators: Any) -> None:
    """From apply to Ready: node told, its report taken up, StorageClass made, one event."""
    operators()
    apply(cluster(tidy))
    assert eventually(lambda: told(node), bool) == [
        {"namespace": tidy, "name": "demo", "path": "/var/lib/kube3fs/demo"}
    ]
    becomes(tidy, "Reconciling", "True", "WaitingForNodes")
    report(node, f"{tidy}/demo")
    becomes(tidy, "Ready", "True", "Serving")
    made = get("storageclass", f"{tidy}.demo")
    assert made
    assert made["parameters"] == {"csi.kube3fs.io/cluster": f"{tidy}/demo"}
    assert made["allowedTopologies"][0]["matchLabelExpressions"][0]["values"] == [node]
    status = (storage_cluster(tidy) or {})["status"]
    summary = {"nodes": "1/1", "capacity": "100Gi", "available": "40Gi", "allocated": "0", "scratch": "0"}
    assert status["summary"] == summary
    assert status["observedGeneration"] == 1
    events = eventually(
        lambda: kubectl("get", "events", "-n", tidy), lambda text: "1 node can take volumes" in text
    )
    assert events.count("Serving") == 1


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["finalizer", "class", "status", "event", "node"])
def test_killed_at_a_write_the_successor_ends_the_same(
    tidy: str, node: str, operators: Any, step: str, moment: str
) -> None:
    """A kill at any write while a cluster comes up costs nothing but the time to start again."""
    apply(cluster(tidy))
    report(node, f"{tidy}/demo")
    first = operators(KUBE3FS_EXIT_AT=f"{moment}:{step}")
    assert first.process.wait(60) == EXIT_STATUS
    operators()
    becomes(tidy, "Ready", "True")
    assert get("storageclass", f"{tidy}.demo")
    assert eventually(lambda: told(node), bool)[0]["name"] == "demo"


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["class-delete", "volume-delete", "release"])
def test_killed_while_deleting_the_successor_ends_the_same(
    tidy: str, node: str, operators: Any, step: str, moment: str
) -> None:
    """A kill at any write of a deletion leaves nothing behind."""
    apply(cluster(tidy, deletionPolicy="Delete"), volume(tidy, f"pvc-{tidy}"))
    release_volume(f"pvc-{tidy}")
    report(node, f"{tidy}/demo")
    first = operators()
    becomes(tidy, "Ready", "True")
    assert first.stop() == 0
    kubectl("delete", "storagecluster", "demo", "-n", tidy, "--wait=false")
    assert operators(KUBE3FS_EXIT_AT=f"{moment}:{step}").process.wait(60) == EXIT_STATUS
    operators()
    eventually(lambda: storage_cluster(tidy), lambda seen: seen is None, 60)
    assert get("storageclass", f"{tidy}.demo") is None
    assert get("storagevolume", f"pvc-{tidy}") is None


def test_deletion_waits_for_volumes_and_names_them(tidy: str, node: str, operators: Any) -> None:
    """Retain: the class goes at once, the cluster stays until its volume is deleted by somebody."""
    operators()
    apply(cluster(tidy), volume(tidy, f"pvc-{tidy}"))
    report(node, f"{tidy}/demo")
    becomes(tidy, "Ready", "True")
    kubectl("delete", "storagecluster", "demo", "-n", tidy, "--wait=false")
    blocked = becomes(tidy, "Ready", "False", "DeletionBlocked")
    assert f"pvc-{tidy} on {node}" in blocked["message"]
    eventually(lambda: get("storageclass", f"{tidy}.demo"), lambda seen: seen is None)
    kubectl("delete", "storagevolume", f"pvc-{tidy}", "--wait=false")
    time.sleep(1)  # the node plugin takes its time; the cluster must still be there then
    assert storage_cluster(tidy)
    release_volume(f"pvc-{tidy}")
    eventually(lambda: storage_cluster(tidy), lambda seen: seen is None, 60)
    eventually(lambda: told(node), lambda clusters: not clusters)


def test_a_node_that_goes_comes_back_or_is_removed(tidy: str, node: str, operators: Any) -> None:
    """Each state of a node has its reason and its advice, and none takes volumes away."""
    operators()
    apply(cluster(tidy), volume(tidy, f"pvc-{tidy}"))
    report(node, f"{tidy}/demo")
    becomes(tidy, "Ready", "True")
    set_status(
        "node", node, {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}
    )
    away = becomes(tidy, "NodesReady", "False", "NodeNotReady")
    assert f"kubectl describe node {node}" in away["message"]
    heartbeat(node)
    becomes(tidy, "NodesReady", "True")
    report(node, f"{tidy}/demo", ready=False, message="/var/lib/kube3fs/demo: Read-only file system")
    broken = becomes(tidy, "NodesReady", "False", "FolderNotReady")
    assert "Read-only file system" in broken["message"]
    report(node, f"{tidy}/demo", available=GIB)
    full = becomes(tidy, "CapacityAvailable", "False", "NodesFull")
    assert "1Gi of 100Gi free" in full["message"]
    kubectl("label", "node", node, "disk-")
    left = becomes(tidy, "NodesReady", "True", "ServingUnselectedNodes")
    assert "still serves 1 volume" in left["message"]
    assert told(node)
    kubectl("delete", "node", node)
    gone = becomes(tidy, "NodesReady", "False", "NodeGone")
    assert "join it again under this name" in gone["message"]
    # The user gives the data up: nothing may hang on the node that is no more.
    kubectl("delete", "storagevolume", f"pvc-{tidy}", "--wait=false")
    eventually(lambda: get("storagevolume", f"pvc-{tidy}"), lambda seen: seen is None)
    eventually(lambda: get("storagenode", node), lambda seen: seen is None)


def test_a_selector_that_matches_nothing_says_so(tidy: str, node: str, operators: Any) -> None:
    """A wrong selector stalls its own cluster, with advice, and disturbs no other."""
    operators()
    apply(cluster(tidy), cluster(tidy, "lost", selector={"disk": "none"}))
    report(node, f"{tidy}/demo")
    becomes(tidy, "Ready", "True")
    lost = eventually(
        lambda: condition(storage_cluster(tidy, "lost"), "Stalled"), lambda c: c.get("status") == "True"
    )
    assert "no node has the labels disk=none" in lost["message"]
    assert condition(storage_cluster(tidy), "Ready")["status"] == "True"


def test_the_taint_is_removed_when_the_node_serves(node: str, operators: Any) -> None:
    """Pods may come as soon as their volumes can be mounted."""
    kubectl("taint", "node", node, "kube3fs.io/agent-not-ready=:NoSchedule")
    operators()
    eventually(
        lambda: (get("node", node) or {})["spec"].get("taints", []),
        lambda taints: all(taint["key"] != "kube3fs.io/agent-not-ready" for taint in taints),
    )


def test_a_clean_exit_hands_the_lease_over_at_once(tidy: str, node: str, operators: Any) -> None:
    """A rolling upgrade does not wait for a lease to expire."""
    first = operators("one")
    eventually(leader, lambda seen: seen == "one")
    operators("two")
    assert first.stop() == 0
    eventually(leader, lambda seen: seen == "two", 12)
    apply(cluster(tidy))
    report(node, f"{tidy}/demo")
    becomes(tidy, "Ready", "True")


def test_a_killed_leader_is_replaced(tidy: str, node: str, operators: Any) -> None:
    """Nobody hands the lease over: it expires, and the other replica leads."""
    first = operators("one")
    eventually(leader, lambda seen: seen == "one")
    operators("two")
    first.kill()
    apply(cluster(tidy))
    report(node, f"{tidy}/demo")
    becomes(tidy, "Ready", "True", deadline=60)
    assert leader() == "two"


def leader() -> str | None:
    lease = get("lease", "kube3fs-operator", "default")
    return lease["spec"].get("holderIdentity") if lease else None


def test_health_and_metrics_are_served(operators: Any) -> None:
    """The kubelet and Prometheus find what they ask for."""
    operators(KUBE3FS_PORT="18431")

    def fetch(path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:18431{path}", timeout=5) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    assert eventually(lambda: fetch("/healthz"), bool) == "ok\n"
    text = eventually(lambda: fetch("/metrics"), lambda seen: "kube3fs_operator_leader 1.0" in seen)
    for name in (
        "reconciles_total",
        "reconcile_duration_seconds",
        "queue_age_seconds",
        "writes_total",
    ):
        assert f"kube3fs_operator_{name}" in text


RESTARTED: list[subprocess.Popen[bytes]] = []
"""API servers of ours, which live as long as the cluster."""


def restart_api_server(log: Path) -> None:
    """Kill it and start it again as it was. It forgets its watch cache: watches that resume have expired."""
    found = [p for p in Path("/proc").glob("[0-9]*") if is_program(p, "kube-apiserver")]
    assert len(found) == 1, "this test runs inside the cluster's namespaces"
    process = found[0]
    argv = (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    environment = dict(
        entry.split(b"=", 1) for entry in (process / "environ").read_bytes().split(b"\0") if b"=" in entry
    )
    folder = (process / "cwd").readlink()
    program = (process / "exe").readlink()
    os.kill(int(process.name), signal.SIGKILL)
    # Not before it is a zombie: until then its port may be taken.
    eventually(lambda: ended(process), bool)
    with log.open("wb") as output:
        RESTARTED.append(
            subprocess.Popen(
                argv,
                executable=program,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        )

    def answers() -> bool:
        try:
            return kubectl("get", "--raw", "/readyz") == "ok"
        except Refused:
            return False

    try:
        eventually(answers, bool, 90)
    except AssertionError:
        print(log.read_text()[-3000:])
        raise


def ended(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def is_program(process: Path, name: str) -> bool:
    try:
        return (process / "cmdline").read_bytes().split(b"\0")[0].rpartition(b"/")[2] == name.encode()
    except OSError:
        return False


def test_the_operator_outlives_a_restart_of_the_api_server(
    tidy: str, node: str, operators: Any, tmp_path: Path
) -> None:
    """The same process goes on: it keeps its lease and sees what happens afterwards."""
    running = operators()
    apply(cluster(tidy))
    report(node, f"{tidy}/demo")
    becomes(tidy, "Ready", "True")
    restart_api_server(tmp_path / "kube-apiserver.log")
    heartbeat(node)
    apply(cluster(tidy, "second"))
    report(node, f"{tidy}/demo", f"{tidy}/second")
    eventually(
        lambda: condition(storage_cluster(tidy, "second"), "Ready").get("status"),
        lambda seen: seen == "True",
        90,
    )
    assert running.process.poll() is None


def test_fifty_clusters_and_five_hundred_volumes(tidy: str, node: str, operators: Any) -> None:
    """All become ready, and the operator stays below 120 MiB."""
    names = [f"load-{number}" for number in range(50)]
    bodies = [volume(tidy, f"{tidy}-{number}") for number in range(500)]
    for number, body in enumerate(bodies):
        body["metadata"]["finalizers"] = []
        body["spec"]["clusterRef"]["name"] = names[number % 50]
    apply(*(cluster(tidy, name) for name in names))
    apply(*bodies)
    report(node, *(f"{tidy}/{name}" for name in names))
    running = operators()

    def ready() -> int:
        items = json.loads(kubectl("get", "storageclusters", "-n", tidy, "-o", "json"))["items"]
        return sum(
            condition(item, "Ready").get("status") == "True" and item["status"]["volumes"] == 10
            for item in items
        )

    eventually(ready, lambda count: count == 50, 120)
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
    assert resident < 120, f"{resident:.0f} MiB"
