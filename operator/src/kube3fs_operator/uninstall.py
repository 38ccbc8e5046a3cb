"""`python -m kube3fs_operator.uninstall`: what the chart runs after it has been uninstalled.

Nobody is left to take our finalizer away, so it is taken away now: a StorageCluster can then be deleted at
any time. Volumes keep the finalizer of their node, which guards data.
"""

import asyncio
import datetime
import logging
import sys
import time

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from kube3fs_operator.api import ENDPOINTS, JSON_PATCH, is_missing
from kube3fs_operator.leader import LEASE_NAME
from kube3fs_operator.render import FINALIZER
from kube3fs_operator.session import api_session
from kube3fs_operator.settings import from_environment

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds to wait for the last operator to end; a lease is held 30 seconds at most by a dead one."""


async def release_all(api_client: client.ApiClient, namespace: str, patience: float = PATIENCE) -> int:
    """Take our finalizer from every StorageCluster, once no operator would put it back. Returns how many."""
    await _wait_for_the_end(client.CoordinationV1Api(api_client), namespace, time.monotonic() + patience)
    objects = client.CustomObjectsApi(api_client)
    where = ENDPOINTS["StorageCluster"]
    try:
        listing = await objects.list_cluster_custom_object(*where)
    except ApiException as error:
        if is_missing(error):
            return 0  # the CRDs are gone, and everything with them
        raise
    released = 0
    for body in listing["items"]:  # type: ignore[index]
        meta = body["metadata"]
        if FINALIZER not in meta.get("finalizers", []):
            continue
        path = f"/metadata/finalizers/{meta['finalizers'].index(FINALIZER)}"
        patch = [{"op": "test", "path": path, "value": FINALIZER}, {"op": "remove", "path": path}]
        await objects.patch_namespaced_custom_object(
            *where[:2], meta["namespace"], where.plural, meta["name"], patch, _content_type=JSON_PATCH
        )
        log.info(
            "StorageCluster %s/%s can be deleted now without the operator", meta["namespace"], meta["name"]
        )
        released += 1
    return released


async def _wait_for_the_end(leases: client.CoordinationV1Api, namespace: str, deadline: float) -> None:
    while True:
        try:
            spec = (await leases.read_namespaced_lease(LEASE_NAME, namespace)).spec
        except ApiException as error:
            if is_missing(error):
                return
            raise
        age = datetime.datetime.now(datetime.UTC) - spec.renew_time if spec and spec.renew_time else None
        if not spec or not spec.holder_identity or age is None:
            return
        if age > datetime.timedelta(seconds=spec.lease_duration_seconds or 0):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"operator {spec.holder_identity} still holds the lease: end it, then run this again"
            )
        await asyncio.sleep(1)


async def _run() -> int:
    async with api_session() as api_client:
        count = await release_all(api_client, from_environment().namespace)
    log.info("%d StorageClusters released", count)
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(asyncio.run(_run()))
