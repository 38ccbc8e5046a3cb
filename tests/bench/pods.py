"""`make bench-pods`: what a volume adds to the start of a pod, on a test cluster.

* from applying a pod to Ready: with our volume and shared memory, in turns with the same pod with emptyDirs
* from applying a claim, with its pod, to Bound: nothing is made before a pod says on which node
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from kubernetes import config, watch

from tests.e2e.conftest import new_namespace
from tests.e2e.kube import Cluster, Manifest, Namespace
from tests.e2e.kube3fs import CLASSES, claim, inline, installed, of_claim, pod

OURS = {"/data": of_claim("data"), "/dev/shm": inline("shm", size="64Mi")}
EMPTY: dict[str, Manifest] = {
    "/data": {"emptyDir": {}},
    "/dev/shm": {"emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
}
MORE_MS = 250
"""The target: a volume and shared memory add no more than this to a pod's start."""


def main() -> int:
    """Install, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.pods", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="samples of each line (default: %(default)s)")
    rounds = parser.parse_args().rounds
    with (
        config.new_client_from_config(os.environ["KUBECONFIG"]) as api,
        installed(Cluster(api)),
        new_namespace(Cluster(api), "restricted") as namespace,
    ):
        bench(namespace, rounds)
    return 0


def bench(namespace: Namespace, rounds: int) -> None:
    """Both tables."""
    print(
        f"Linux {platform.release()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {rounds} rounds"
    )
    print(f"{'':<52} {'p50 ms':>8} {'longest':>8}   target")
    empty, ours = pods(namespace, rounds)
    row("pod applied to Ready, two emptyDirs", empty)
    row("pod applied to Ready, our volume and shm", ours)
    more = statistics.median(ours) - statistics.median(empty)
    print(f"{'  which is more by':<52} {more:8.0f} {'':8}   {MORE_MS}")
    row(
        "claim applied, with its pod, to Bound",
        [bound(namespace, f"bench-{number}") for number in range(rounds)],
    )
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")
    print(
        "The kubelet looks every 300 ms whether volumes are mounted: one look more moves a sample, or a p50."
    )


def pods(namespace: Namespace, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds to Ready with emptyDirs and with ours, in turns. The first of each only warms up."""
    namespace.apply(claim("data", CLASSES["directory"]))
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for volumes, times in zip((EMPTY, OURS), samples, strict=True):
            times.append(ready(namespace, pod("bench", volumes)))
            namespace.delete(pod("bench", {}))
            namespace.wait_gone("bench")
    namespace.delete(claim("data", CLASSES["directory"]))
    return samples[0][1:], samples[1][1:]


def ready(namespace: Namespace, manifest: Manifest) -> float:
    """Applies a pod; milliseconds until it is Ready."""

    def is_ready(found: Any) -> bool:
        return any(one.type == "Ready" and one.status == "True" for one in found.status.conditions or [])

    pods_of = namespace.cluster.core.list_namespaced_pod
    return until(is_ready, lambda: namespace.apply(manifest), pods_of, namespace.name)


def bound(namespace: Namespace, name: str) -> float:
    """Applies a claim and a pod with it; milliseconds until the claim is Bound."""
    manifests = [claim(name, CLASSES["directory"]), pod(name, {"/data": of_claim(name)})]
    took = until(
        lambda found: bool(found.metadata.name == name and found.status.phase == "Bound"),
        lambda: namespace.apply(manifests),
        namespace.cluster.core.list_namespaced_persistent_volume_claim,
        namespace.name,
    )
    for manifest in reversed(manifests):
        namespace.delete(manifest)
    namespace.wait_gone(name)
    return took


def until(holds: Callable[[Any], bool], act: Callable[[], object], listing: Any, namespace: str) -> float:
    """Acts; milliseconds until an object of the listing holds. It is watched: no polling blurs the time."""
    before = listing(namespace).metadata.resource_version
    start = time.perf_counter()
    act()
    for event in watch.Watch().stream(listing, namespace, resource_version=before, timeout_seconds=60):
        if holds(event["object"]):
            return (time.perf_counter() - start) * 1000
    raise SystemExit("bench-pods: nothing for 60 s; `python3 -m tests.cluster logs kubelet` may say why")


def row(what: str, samples: list[float]) -> None:
    """One line of the table."""
    print(f"{what:<52} {statistics.median(samples):8.0f} {max(samples):8.0f}")


if __name__ == "__main__":
    sys.exit(main())
