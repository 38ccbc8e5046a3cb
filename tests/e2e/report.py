"""What a cluster looks like, for the report of a failed test: pods, events, logs."""

from typing import Any

from kubernetes.client.exceptions import ApiException

from tests.e2e.kube import Cluster, describe

LOG_LINES = 40
EVENTS = 60


def report(cluster: Cluster) -> str:
    """Pods with their state, the last events, the end of every container's log."""
    pods = cluster.core.list_pod_for_all_namespaces().items
    parts = ["pods:", *(f"  {describe(pod)}" for pod in pods), "events:"]
    parts += [f"  {line}" for line in _events(cluster)]
    for pod in pods:
        for container in [*(pod.spec.init_containers or []), *pod.spec.containers]:
            parts.append(f"log of {pod.metadata.namespace}/{pod.metadata.name} {container.name}:")
            parts += [f"  {line}" for line in _log(cluster, pod, container.name)]
    return "\n".join(parts)


def _events(cluster: Cluster) -> list[str]:
    events = sorted(
        cluster.core.list_event_for_all_namespaces().items,
        key=lambda event: event.last_timestamp or event.event_time or event.metadata.creation_timestamp,
    )
    return [
        f"{e.metadata.namespace}/{e.involved_object.kind}/{e.involved_object.name}: {e.reason}: {e.message}"
        for e in events[-EVENTS:]
    ]


def _log(cluster: Cluster, pod: Any, container: str) -> list[str]:
    try:
        log: str = cluster.core.read_namespaced_pod_log(
            pod.metadata.name, pod.metadata.namespace, container=container, tail_lines=LOG_LINES
        )
    except ApiException as error:
        return [f"(none: {error.reason})"]
    return log.splitlines()
