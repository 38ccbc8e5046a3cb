"""Events on pods that asked to be injected and will not have what they think.

The admission policies warn whoever makes such a pod. The pod of a workload is made by a controller, which
shows warnings to nobody: an event stays with the pod.
"""

import asyncio
import datetime
import hashlib
import logging
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any, NamedTuple
from urllib.parse import quote

from kube3fs_crds import bytes_of
from kube3fs_csi.kube.api import Api
from kube3fs_csi.names import ATTRIBUTE_SIZE, DRIVER
from kube3fs_csi.serving.errors import AlreadyExists, CsiError

log = logging.getLogger(__name__)

Pod = dict[str, Any]

_LABEL = "kube3fs.io/inject"
_CONTAINERS = "kube3fs.io/containers"
_SHM_VOLUME = "kube3fs-shm"
_SHM_PATHS = ("/dev/shm", "/dev/shm/")  # noqa: S108 - the pod's
_SELECTED = {"labelSelector": f"{_LABEL}=true"}
_PATH = "/api/v1/pods"
_PAGE, _WATCH_SECONDS, _RETRY_SECONDS = 500, 300, 5.0
_MAX_NAME = 253


class Finding(NamedTuple):
    """What surprises about a pod: a reason in CamelCase, and a sentence."""

    reason: str
    message: str


def findings(pod: Pod) -> list[Finding]:
    """What the user of a labelled pod should know. Pure."""
    own = [one["name"] for one in _chosen(pod) if _mounts_own_shm(one)]
    if own:
        return [
            Finding(
                "NotInjected",
                f"{_LABEL} does nothing here: container {', '.join(own)} mounts its own /dev/shm, which "
                "usrbiod cannot see; remove that mount, or name the other containers in the annotation "
                f"{_CONTAINERS}",
            )
        ]
    size = _shm_size(pod)
    small = [one["name"] for one in _chosen(pod) if size and 0 < _limit(one) < size]
    if small:
        return [
            Finding(
                "SharedMemoryAboveLimit",
                f"container {', '.join(small)} has a memory limit below the {size} bytes of /dev/shm, which "
                "counts as its memory: it is killed when it fills /dev/shm; raise the limit, or lower the "
                "annotation kube3fs.io/shm-size",
            )
        ]
    return []


def _chosen(pod: Pod) -> Iterator[dict[str, Any]]:
    """The containers that are to be injected."""
    named = (pod["metadata"].get("annotations") or {}).get(_CONTAINERS)
    names = None if named is None else {name.strip() for name in named.split(",")}
    for one in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
        if names is None or one["name"] in names:
            yield one


def _mounts_own_shm(container: dict[str, Any]) -> bool:
    return any(
        mount["mountPath"] in _SHM_PATHS and mount["name"] != _SHM_VOLUME
        for mount in container.get("volumeMounts", ())
    )


def _shm_size(pod: Pod) -> int:
    """Bytes of the shared memory that was added to the pod; 0 if there is none."""
    for volume in pod["spec"].get("volumes", ()):
        inline = volume.get("csi") or {}
        if volume["name"] == _SHM_VOLUME and inline.get("driver") == DRIVER:
            return _bytes((inline.get("volumeAttributes") or {}).get(ATTRIBUTE_SIZE))
    return 0


def _limit(container: dict[str, Any]) -> int:
    limits = (container.get("resources") or {}).get("limits") or {}
    return _bytes(limits.get("memory"))


def _bytes(quantity: object) -> int:
    try:
        return bytes_of(str(quantity)) if quantity is not None else 0
    except ValueError:  # the API server or the kubelet says so
        return 0


class InjectionEvents:
    """Follows labelled pods, keeps none, and writes each event once, however many controllers there are."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            try:
                version = await self._list()
                while True:
                    version = await self._watch(version)
            except CsiError as error:
                log.warning("labelled pods: %s", error)
            except Exception:
                log.exception("following labelled pods failed")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _list(self) -> str:
        """Judges the pods that do not run yet: others were judged when they were made."""
        query = {**_SELECTED, "limit": str(_PAGE)}
        while True:
            page = await self._api.request("the labelled pods", "GET", _PATH, query)
            for pod in page["items"]:
                if pod.get("status", {}).get("phase", "Pending") == "Pending":
                    await self.judge(pod)
            if not (more := page["metadata"].get("continue")):
                return str(page["metadata"]["resourceVersion"])
            query["continue"] = more

    async def _watch(self, version: str) -> str:
        query = {
            **_SELECTED,
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_SECONDS),
            "allowWatchBookmarks": "true",
        }
        watch = self._api.watch("the watch of labelled pods", _PATH, query, _WATCH_SECONDS + 30)
        async with aclosing(watch) as events:
            async for event in events:
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "ADDED":
                    await self.judge(event["object"])
        return version

    async def judge(self, pod: Pod) -> None:
        """Writes what there is to say of the pod. An event that is lost is no reason to stop."""
        for finding in findings(pod):
            meta = pod["metadata"]
            digest = hashlib.sha256(f"{meta['uid']} {finding.reason}".encode()).hexdigest()[:16]
            now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            body = {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {
                    "name": f"{meta['name'][: _MAX_NAME - 17]}.{digest}",
                    "namespace": meta["namespace"],
                },
                "involvedObject": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "namespace": meta["namespace"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                },
                "type": "Warning",
                "reason": finding.reason,
                "message": finding.message[:1024],
                "source": {"component": DRIVER},
                "firstTimestamp": now,
                "lastTimestamp": now,
                "count": 1,
            }
            path = f"/api/v1/namespaces/{quote(meta['namespace'], safe='')}/events"
            try:
                await self._api.request(f"an event of pod {meta['name']}", "POST", path, None, body)
            except AlreadyExists:
                continue  # another controller was quicker
            except CsiError as error:
                log.warning("pod %s/%s: %s (%s)", meta["namespace"], meta["name"], finding.message, error)
