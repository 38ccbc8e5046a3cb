"""`python -m kube3fs_operator.doctor`: is the installation sound? `helm test` runs it.

Prints one line per check and exits 1 when one fails. It changes nothing: the pod by which it tries the
injection is a dry run.
"""

import asyncio
import datetime
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from kube3fs_operator.api import ENDPOINTS, sentence
from kube3fs_operator.leader import LEASE_NAME, LEASE_SECONDS
from kube3fs_operator.render import DRIVER
from kube3fs_operator.session import api_session
from kube3fs_operator.settings import from_environment


class Unsound(Exception):
    """A check failed. The message says what to do."""


async def types_are_served(api_client: client.ApiClient, _: str) -> str:
    """The API server knows our kinds."""
    objects = client.CustomObjectsApi(api_client)
    for kind in ("StorageCluster", "StorageNode", "StorageVolume", "StorageSnapshot"):
        await objects.list_cluster_custom_object(*ENDPOINTS[kind], limit=1)
    return "StorageCluster, StorageNode, StorageVolume and StorageSnapshot are served"


async def operator_leads(api_client: client.ApiClient, namespace: str) -> str:
    """A replica of the operator has renewed its lease lately."""
    lease = await client.CoordinationV1Api(api_client).read_namespaced_lease(LEASE_NAME, namespace)
    spec = lease.spec
    if not spec or not spec.holder_identity or not spec.renew_time:
        raise Unsound("nobody leads: see the logs of the operator's pods")
    age = datetime.datetime.now(datetime.UTC) - spec.renew_time
    if age > datetime.timedelta(seconds=LEASE_SECONDS):
        raise Unsound(f"{spec.holder_identity} has not renewed its lease for {age.seconds} s: see its log")
    return f"{spec.holder_identity} leads"


async def driver_is_registered(api_client: client.ApiClient, _: str) -> str:
    """The CSIDriver object is there."""
    await client.StorageV1Api(api_client).read_csi_driver(DRIVER)
    return f"CSIDriver {DRIVER} is there"


async def nodes_are_ready(api_client: client.ApiClient, _: str) -> str:
    """Every node plugin that has reported can serve."""
    listing: Any = await client.CustomObjectsApi(api_client).list_cluster_custom_object(
        *ENDPOINTS["StorageNode"]
    )
    sick = []
    for body in listing["items"]:
        conditions = body.get("status", {}).get("conditions", [])
        ready = next((c for c in conditions if c["type"] == "Ready"), None)
        if ready is None or ready["status"] != "True":
            sick.append(
                f"{body['metadata']['name']}: {ready['message'] if ready else 'has not reported yet'}"
            )
    if not listing["items"]:
        raise Unsound(
            "no node plugin has reported: see kubectl get pods -l app.kubernetes.io/component=csi-node"
        )
    if sick:
        raise Unsound("; ".join(sick))
    return f"{len(listing['items'])} node plugins are ready"


async def pods_are_injected(api_client: client.ApiClient, namespace: str) -> str:
    """A labelled pod gets the two volumes, or this Kubernetes cannot do it, which is no fault."""
    resources = await client.AdmissionregistrationV1Api(api_client).get_api_resources()
    if not any(resource.kind == "MutatingAdmissionPolicy" for resource in resources.resources):
        return "pods are not injected: this Kubernetes has no MutatingAdmissionPolicy v1 (1.36 and later)"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "kube3fs-doctor-", "labels": {"kube3fs.io/inject": "true"}},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }
    made = await client.CoreV1Api(api_client).create_namespaced_pod(namespace, pod, dry_run="All")  # type: ignore[arg-type]
    mounts = (
        {mount.mount_path for mount in made.spec.containers[0].volume_mounts or ()} if made.spec else set()
    )
    missing = {"/dev/shm", "/opt/usrbio"} - mounts  # noqa: S108 - the pod's, not ours
    if missing:
        raise Unsound(f"a pod with the label kube3fs.io/inject got no {', '.join(sorted(missing))}")
    return "a labelled pod gets /dev/shm and /opt/usrbio"


CHECKS: tuple[Callable[[client.ApiClient, str], Awaitable[str]], ...] = (
    types_are_served,
    operator_leads,
    driver_is_registered,
    nodes_are_ready,
    pods_are_injected,
)


async def examine(api_client: client.ApiClient, namespace: str, say: Callable[[str], None]) -> bool:
    """Run every check, also after one has failed. True when all passed."""
    sound = True
    for check in CHECKS:
        try:
            say(f"ok    {await check(api_client, namespace)}")
        except Unsound as finding:
            say(f"FAIL  {check.__name__}: {finding}")
            sound = False
        except ApiException as error:
            say(f"FAIL  {check.__name__}: {sentence(error)}")
            sound = False
    return sound


async def _run() -> int:
    async with api_session() as api_client:
        return 0 if await examine(api_client, from_environment().namespace, print) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(_run()))
