"""The running operator: the leader watches, and a few workers take keys from the queue and reconcile them."""

import asyncio
import logging
import random
import time

import aiohttp
import kopf
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from kube3fs_operator import metrics, watch
from kube3fs_operator.api import Api, sentence
from kube3fs_operator.faults import Faults
from kube3fs_operator.queue import WorkQueue
from kube3fs_operator.reconcile import Key, NodeKey, Reconciler
from kube3fs_operator.settings import Settings
from kube3fs_operator.silence import Silence
from kube3fs_operator.silence import watch as watch_leases
from kube3fs_operator.views import ClusterKey, World

log = logging.getLogger(__name__)

WORKERS = 4
LOOK_AGAIN = 600.0
"""Seconds after which a key is looked at again although nothing happened."""


async def operate(
    api_client: client.ApiClient, settings: Settings, faults: Faults, queue: WorkQueue[Key]
) -> None:
    """Watch and reconcile until cancelled."""
    ready: asyncio.Future[Reconciler] = asyncio.get_running_loop().create_future()

    api = Api(api_client, settings.identity, faults, namespace=settings.namespace)
    silence = Silence()

    def started(world: World) -> None:
        ready.set_result(Reconciler(world, api, last_spoke=silence.renewed))

    watching = asyncio.create_task(
        kopf.operator(
            registry=watch.registry(queue, settings.class_names, started),
            settings=watch.settings(),
            clusterwide=True,
            # kopf would make one up from the user's name, which a container's user does not have.
            identity=settings.identity,  # type: ignore[arg-type] # its NewType of str is private
        )
    )
    workers = [asyncio.create_task(_work(queue, ready)) for _ in range(WORKERS)]
    workers.append(asyncio.create_task(watch_leases(api, silence, lambda node: queue.add(NodeKey(node)))))
    try:
        done, _ = await asyncio.wait({watching, *workers}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in (*workers, watching):
            task.cancel()
        await asyncio.gather(*workers, watching, return_exceptions=True)


async def _work(queue: WorkQueue[Key], ready: asyncio.Future[Reconciler]) -> None:
    reconciler = await asyncio.shield(ready)
    while True:
        await reconcile_next(queue, reconciler)


async def reconcile_next(queue: WorkQueue[Key], reconciler: Reconciler) -> None:
    """Take one key and reconcile it. An error costs this key a delay and nobody else anything."""
    key = await queue.take()
    kind = "StorageNode" if isinstance(key, NodeKey) else "StorageCluster"
    began = time.monotonic()
    result = "success"
    try:
        again = await reconciler.reconcile(key)
    except (ApiException, aiohttp.ClientError, OSError, TimeoutError) as error:
        result = "retry"
        said = sentence(error) if isinstance(error, ApiException) else repr(error)
        log.warning("%s %s: %s; again in %.1f s", kind, _name(key), said, queue.failed(key))
    except Exception:
        # A defect of ours must not stop the reconciles of other objects.
        result = "error"
        log.exception("%s %s: again in %.1f s", kind, _name(key), queue.failed(key))
    else:
        queue.done(key)
        if again is None and isinstance(key, ClusterKey):
            reconciler.look_for_snapshot_api_again()
        queue.add_after(key, again if again is not None else LOOK_AGAIN * random.uniform(0.9, 1.1))  # noqa: S311 - jitter
    finally:
        metrics.RECONCILES.labels(kind, result).inc()
        metrics.DURATION.labels(kind).observe(time.monotonic() - began)


def _name(key: Key) -> str:
    return key.name if isinstance(key, NodeKey) else str(key)
