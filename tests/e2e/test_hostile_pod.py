"""One restricted pod tries all it can on its node; the neighbour on another volume must not notice.

KUBE3FS_HOSTILE_SECONDS is how long each attack goes on: `make test-hostile` has the long rounds. Short ones,
beside other clusters on the same CPUs, judge the median of calls; long ones, alone on a machine, the p99.
"""

import json
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kube import Cluster, Manifest, Namespace, wait_for
from tests.e2e.kube3fs import CLASSES, NODE, SYSTEM, claim, events, inline, installed, of_claim, pod
from tests.e2e.node import nothing_left, process

SECONDS = float(os.environ.get("KUBE3FS_HOSTILE_SECONDS", "2"))
_PROGRAMS = Path(__file__).parent / "hostile"
_ATTACKS = (_PROGRAMS / "attacks.py").read_text()
_NEIGHBOUR = (_PROGRAMS / "neighbour.py").read_text()

LONG = "KUBE3FS_HOSTILE_SECONDS" in os.environ
TIMES = 5
"""A neighbour's calls may take this many times what they take when nothing else goes on."""
FLOOR = 0.03
"""Seconds that they may always take: a time slice or two of two CPUs that run a whole Kubernetes."""


@pytest.fixture(scope="module", autouse=True)
def _kube3fs(cluster: Cluster) -> Iterator[None]:
    with installed(cluster):
        yield


def node_plugin(cluster: Cluster) -> Any:
    """The node plugin's pod on the node."""
    pods = cluster.core.list_namespaced_pod(SYSTEM, label_selector="app.kubernetes.io/component=csi-node")
    (found,) = [one for one in pods.items if one.spec.node_name == NODE]
    return found


def restarts(cluster: Cluster) -> dict[str, int]:
    """How often each container of the node plugin was started again."""
    return {one.name: one.restart_count for one in node_plugin(cluster).status.container_statuses}


class Neighbour:
    """The pod that works, checks and measures."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        volumes = {"/data": of_claim("neighbour"), "/dev/shm": inline("shm", size="64Mi")}
        namespace.apply(
            [
                claim("neighbour", CLASSES["directory"], "128Mi"),
                pod("neighbour", volumes, "python3", "-c", _NEIGHBOUR),
            ]
        )
        namespace.wait_ready("neighbour")

    def stats(self) -> Any:
        """Latencies of each phase so far."""
        return json.loads(self.namespace.exec("neighbour", "cat", "/dev/shm/stats"))

    def enter(self, phase: str, rounds: int = 0) -> None:
        """What it measures from now on counts for `phase`. Returns when it was round `rounds` times."""
        script = f"echo -n {phase} > /dev/shm/new && mv /dev/shm/new /dev/shm/phase"
        self.namespace.exec("neighbour", "sh", "-c", script)
        wait_for(f"the neighbour works during {phase}", partial(self._has_done, phase, rounds), 60)

    def _has_done(self, phase: str, rounds: int) -> bool:
        assert self.namespace.pod("neighbour").status.phase == "Running", self.namespace.logs("neighbour")
        return bool(self.stats().get(phase, {}).get("lock", [0])[0] > rounds)

    def stop(self) -> Any:
        """Ends it; all that it saw was right. Returns its statistics."""
        stats = self.stats()
        self.namespace.exec("neighbour", "touch", "/dev/shm/stop")
        assert self.namespace.wait_done("neighbour") == "unharmed\n"
        return stats


def attacker(namespace: Namespace) -> None:
    """A pod with little CPU and memory, a volume and shared memory; its second container may only read."""
    limits = {"resources": {"limits": {"cpu": "300m", "memory": "256Mi"}}}
    data = {"/data": of_claim("attacker"), "/dev/shm": inline("shm", size="128Mi")}
    manifest = pod("attacker", data, container=limits)
    (container,) = manifest["spec"]["containers"]
    mounts = [{"name": "v0", "mountPath": "/data", "readOnly": True}]
    manifest["spec"]["containers"].append({**container, "name": "reader", "volumeMounts": mounts})
    namespace.apply([claim("attacker", CLASSES["directory"], "256Mi"), manifest])
    namespace.wait_ready("attacker")


def attack(namespace: Namespace, name: str, *arguments: str, container: str = "main") -> Any:
    """What the attack was answered."""
    argv = ("python3", "-c", _ATTACKS, name, str(SECONDS), *arguments)
    said = namespace.exec("attacker", *argv, container=container, seconds=SECONDS * 10 + 120)
    return json.loads(said.splitlines()[-1])


def too_slow(stats: Any) -> dict[str, Any]:
    """Phases and kinds that take longer than a neighbour may feel, with their seconds and those of alone."""
    taken = {
        phase: {kind: seen[2 if LONG else 1] for kind, seen in kinds.items()}
        for phase, kinds in stats.items()
    }
    return {
        f"{phase}: {kind}": (round(seconds, 4), round(taken["alone"][kind], 4))
        for phase, kinds in taken.items()
        for kind, seconds in kinds.items()
        if seconds > max(TIMES * taken["alone"][kind], FLOOR if LONG else 0)
    }


def test_a_neighbour_notices_nothing(cluster: Cluster, namespace: Namespace) -> None:
    """Under every attack a neighbour's calls succeed and take not much longer, and its bytes are its own."""
    before = restarts(cluster)
    neighbour = Neighbour(namespace)
    attacker(namespace)
    neighbour.enter("alone", rounds=300)
    answers = {}
    address = f"{node_plugin(cluster).status.pod_ip}:9809"
    for name in (
        "directories",
        "locks",
        "sparse-memory",
        "garbage-in-iovs",
        "many-rings",
        "holes",
        "log-flood",
        "notifications",
        "connections",
    ):
        neighbour.enter(name)
        answers[name] = attack(namespace, name, *([address] if name == "connections" else []))
        neighbour.enter(f"after-{name}", rounds=20)
    stats = neighbour.stop()
    print(json.dumps({"answers": answers, "stats": stats}, indent=1))
    assert restarts(cluster) == before
    assert not too_slow(stats)


def test_orders_by_a_read_only_mount_are_refused(namespace: Namespace) -> None:
    """Every way to change a file of 3FS's is refused where the container's mount is read-only."""
    attacker(namespace)
    attack(namespace, "guarded-files")
    seen = attack(namespace, "read-only-orders", container="reader")
    assert "done" not in seen["answers"].values(), seen
    assert seen["left"] == ["one", "three", "tree", "two"]
    assert seen["whole"]


def test_links_of_an_archive_are_links(namespace: Namespace) -> None:
    """A link whose target reads like an order moves and removes nothing, and 3fs-virt is in no listing."""
    attacker(namespace)
    seen = attack(namespace, "orders-in-archives")
    assert seen == {"kept": ["mine", "mv:/data/unpacked/mine"], "3fs-virt is listed": False}


def test_no_line_of_the_log_is_a_tenants(cluster: Cluster, namespace: Namespace) -> None:
    """A tenant's names end no line of the daemon's log, and its errors fill no disk."""
    attacker(namespace)
    attack(namespace, "log-flood")
    log = cluster.core.read_namespaced_pod_log(
        node_plugin(cluster).metadata.name, SYSTEM, container="usrbiod", since_seconds=int(SECONDS) + 60
    )
    assert not [
        line for line in log.splitlines() if line.startswith("2026-01-01") or "ERROR FORGED" in line[:60]
    ]
    assert len(log.splitlines()) < 500


def test_sparse_memory_is_the_pods_own(namespace: Namespace) -> None:
    """A buffer beyond the pod's limits is refused, and costs the daemon nothing."""
    attacker(namespace)
    daemon = process("usrbiod", "daemon", group=f"/{NODE}/")
    assert attack(namespace, "sparse-memory") in ("ENOMEM", "ENOSPC", "EDQUOT")
    assert process("usrbiod", "daemon", group=f"/{NODE}/").memory < daemon.memory + (64 << 20)


def test_a_scrape_comes_through_idle_connections(cluster: Cluster, namespace: Namespace) -> None:
    """While a hundred connections say nothing, the daemon's metrics are read within their deadline."""
    attacker(namespace)
    address = f"{node_plugin(cluster).status.pod_ip}:9809"
    argv = [
        "kubectl",
        "-n",
        namespace.name,
        "exec",
        "attacker",
        "-c",
        "main",
        "--",
        "python3",
        "-c",
        _ATTACKS,
    ]
    with subprocess.Popen([*argv, "connections", "10", address], stdout=subprocess.PIPE) as held:
        try:
            for _ in range(3):
                assert b"usrbiod" in scrape(address)
        finally:
            held.terminate()


def scrape(address: str) -> bytes:
    """The metrics at an address, asked for as Prometheus does."""

    def ask() -> bytes | None:
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                return bytes(answer.read())
        except OSError as error:
            raise AssertionError(str(error)) from error

    return wait_for("a scrape", ask, 15)


def test_deep_trees_stop_no_other_pod(cluster: Cluster, namespace: Namespace) -> None:
    """A volume of thousands of nested directories is removed, while pods start and the plugin runs on."""
    before = restarts(cluster)
    attacker(namespace)
    assert attack(namespace, "deep-tree") > 100
    gone = namespace.pod("attacker").metadata.uid
    namespace.cluster.core.delete_namespaced_pod("attacker", namespace.name)
    namespace.wait_gone("attacker")
    namespace.delete(claim("attacker", CLASSES["directory"]))
    namespace.apply([claim("other", CLASSES["directory"]), pod("other", {"/data": of_claim("other")})])
    namespace.wait_ready("other")
    wait_for("nothing is left", lambda: nothing_left(gone))
    assert restarts(cluster) == before


def test_a_copy_of_a_hostile_volume_holds_nothing_else(namespace: Namespace) -> None:
    """Clones of a volume whose pod swaps a folder for a link all the time hold nothing of the node."""
    secret = Path("/var/lib/kube3fs/root-only")
    secret.mkdir(mode=0o700, exist_ok=True)
    (secret / "inside").write_text("a secret of the node")
    attacker(namespace)
    argv = [
        "kubectl",
        "-n",
        namespace.name,
        "exec",
        "attacker",
        "-c",
        "main",
        "--",
        "python3",
        "-c",
        _ATTACKS,
    ]
    with subprocess.Popen([*argv, "flip", "60", str(secret)], stdout=subprocess.PIPE) as flipping:
        names = [f"clone-{number}" for number in range(4)]
        namespace.apply([clone(name) for name in names])
        volumes = {f"/{name}": of_claim(name) for name in names}
        namespace.apply(pod("reader", volumes))
        namespace.wait_ready("reader", seconds=90)
        flipping.terminate()
    found = namespace.exec(
        "reader", "sh", "-c", "grep -rs secret / --include=inside --exclude-dir=proc || true"
    )
    assert "a secret of the node" not in found


def clone(name: str) -> Manifest:
    """A claim that starts as a copy of the attacker's."""
    source = {"kind": "PersistentVolumeClaim", "name": "attacker"}
    return claim(name, CLASSES["directory"], "256Mi", dataSource=source)


@pytest.mark.parametrize("size", ["1e99999999", "9" * 60 + "Ei", "1e-9", "-1", "NaN"])
def test_a_hostile_number_costs_its_own_pod_only(cluster: Cluster, namespace: Namespace, size: str) -> None:
    """An inline volume of a size that nothing has is refused with a sentence; others mount meanwhile."""
    before = restarts(cluster)
    namespace.apply(pod("bad", {"/dev/shm": inline("shm", size=size)}))
    namespace.apply(pod("good", {"/dev/shm": inline("shm", size="1Mi")}))
    namespace.wait_ready("good")
    wait_for("an event that says why", lambda: "csi.kube3fs.io/size" in events(cluster, namespace.name))
    assert restarts(cluster) == before
