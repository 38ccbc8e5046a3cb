"""Measures the operator against a real API server: `make bench-operator`.

* from `kubectl apply` to Ready, one cluster at a time
* what injection adds to the creation of a pod, as the client sees it, in turns with pods without the label
* with 50 clusters and 500 volumes: memory, and requests to the API server a minute while nothing happens

The node plugin is played by this program, which writes StorageNode status as the plugin does.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kubernetes import client, config

from tests.api.kube import apply, condition, eventually, get, kubectl
from tests.api.test_injection import pod
from tests.api.test_operator import NODE, Operator, beating, cluster, report, volume, with_ready_node

ROOT = Path(__file__).parents[2]
CLUSTERS, VOLUMES = 50, 500
PODS, WARM_UP = 1000, 20
QUIET_SECONDS = 45
NAMESPACE = "bench"
POLICY = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def time_to_ready() -> None:
    """Ten clusters, one after the other; the plugin answers at once."""
    times = []
    for number in range(10):
        began = time.perf_counter()
        bring_up(f"ready-{number}", [f"{NAMESPACE}/ready-{n}" for n in range(number + 1)])
        times.append(time.perf_counter() - began)
    print(f"apply to Ready, kubectl included   median {milliseconds(statistics.median(times))}", end="")
    print(f"   longest {milliseconds(max(times))}")


def bring_up(name: str, served: list[str]) -> None:
    """One cluster, until it is Ready. The plugin reports what it serves as soon as it is told."""
    apply(cluster(NAMESPACE, name))
    eventually(lambda: name in json.dumps(get("storagenode", NODE)), bool)
    report(NODE, *served)
    eventually(
        lambda: condition(get("storagecluster", name, NAMESPACE), "Ready"),
        lambda c: c.get("status") == "True",
    )


def injection() -> None:
    """Dry-run creations with and without the label, in turns, over one connection that stays open."""
    times: dict[str, list[float]] = {"with": [], "without": []}
    bodies = {
        "with": pod(NAMESPACE, kube3fs_shm_size="64Mi"),
        "without": pod(NAMESPACE, label=None),
    }
    with config.new_client_from_config() as connection:
        pods = client.CoreV1Api(connection)
        for turn in range(PODS + WARM_UP):
            for name, body in bodies.items():
                began = time.perf_counter()
                pods.create_namespaced_pod(NAMESPACE, body, dry_run="All")  # type: ignore[arg-type] # any JSON
                if turn >= WARM_UP:
                    times[name].append(time.perf_counter() - began)
    for rank in (50, 99):
        injected, plain = (sorted(taken)[PODS * rank // 100] * 1000 for taken in times.values())
        print(f"injected pod, p{rank}                  {injected:.1f} ms", end="")
        print(f"   not injected {plain:.1f} ms   added {injected - plain:.1f} ms")


def requests() -> int:
    """Requests that the API server has answered so far."""
    metrics = kubectl("get", "--raw", "/metrics")
    return sum(int(n) for n in re.findall(r"^apiserver_request_total\{[^}]*\} (\d+)$", metrics, re.M))


def a_quiet_minute() -> float:
    """Requests a minute while nothing happens."""
    before, began = requests(), time.monotonic()
    time.sleep(QUIET_SECONDS)  # the measurement itself
    return (requests() - before - 1) * 60 / (time.monotonic() - began)


def load(operator: Operator, without_operator: float) -> None:
    """50 clusters, 500 volumes, then silence."""
    names = [f"load-{number}" for number in range(CLUSTERS)]
    began = time.perf_counter()
    apply(*(cluster(NAMESPACE, name) for name in names))
    volumes = [volume(NAMESPACE, f"bench-{number}") for number in range(VOLUMES)]
    for number, body in enumerate(volumes):
        body["metadata"]["finalizers"] = []
        body["spec"]["clusterRef"]["name"] = names[number % CLUSTERS]
    apply(*volumes)
    report(NODE, *(f"{NAMESPACE}/{name}" for name in names))

    def ready() -> int:
        items = json.loads(kubectl("get", "storageclusters", "-n", NAMESPACE, "-o", "json"))["items"]
        settled = [item for item in items if item["status"].get("volumes") == VOLUMES // CLUSTERS]
        return sum(condition(item, "Ready").get("status") == "True" for item in settled)

    eventually(ready, CLUSTERS.__eq__, 180)
    print(f"{CLUSTERS} clusters, {VOLUMES} volumes, all ready   {time.perf_counter() - began:.0f} s")
    quiet = a_quiet_minute()
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    resident = int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024
    print(f"operator's memory then             {resident:.0f} MiB")
    print(f"its requests a minute, quiet       {quiet - without_operator:.0f}", end="")
    print(f"   ({quiet:.0f} with, {without_operator:.0f} without the operator)")


def main() -> int:
    """Set up, measure, print."""
    kubectl("apply", "--server-side", "-f", str(ROOT / "crds/manifests"))
    kubectl("wait", "--for=condition=Established", "crd", "-l", "app.kubernetes.io/part-of=kube3fs")
    templates = ("-s", "templates/admission/inject.yaml", "-s", "templates/admission/validate.yaml")
    policies = subprocess.run(
        ["helm", "template", "kube3fs", str(ROOT / "charts/kube3fs"), *templates, "-a", POLICY],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    kubectl("apply", "-f", "-", stdin=policies.stdout)
    kubectl("create", "namespace", NAMESPACE)
    with_ready_node(NODE)
    with beating(NODE):
        without_operator = a_quiet_minute()
    with tempfile.TemporaryDirectory() as folder, beating(NODE):
        operator = Operator(Path(folder) / "operator.log")
        try:
            time_to_ready()
            injection()
            for number in range(10):
                kubectl("delete", "storagecluster", f"ready-{number}", "-n", NAMESPACE)
            load(operator, without_operator)
        finally:
            operator.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
