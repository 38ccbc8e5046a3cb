"""For whom volumes are made: claims, VolumeSnapshotContents and PersistentVolumes, asked now."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from kube3fs_csi.kube.api import Api
from kube3fs_csi.names import DRIVER
from kube3fs_csi.serving.errors import NotFound

_PAGE = 500


async def claim_uid(api: Api, namespace: str, name: str) -> str | None:
    """The uid of a PersistentVolumeClaim; None if there is none."""
    path = f"/api/v1/namespaces/{quote(namespace, safe='')}/persistentvolumeclaims/{quote(name, safe='')}"
    found = await _get(api, f"claim {namespace}/{name}", path)
    return found["metadata"]["uid"] if found else None


async def content_is_wanted(api: Api, name: str) -> bool:
    """Whether there is a VolumeSnapshotContent of this name that is not being deleted."""
    path = f"/apis/snapshot.storage.k8s.io/v1/volumesnapshotcontents/{quote(name, safe='')}"
    found = await _get(api, f"VolumeSnapshotContent {name}", path)
    return found is not None and "deletionTimestamp" not in found["metadata"]


async def node_exists(api: Api, name: str) -> bool:
    """Whether Kubernetes has the node."""
    return await _get(api, f"node {name}", f"/api/v1/nodes/{quote(name, safe='')}") is not None


async def persistent_volumes(api: Api) -> AsyncIterator[dict[str, Any]]:
    """Those of this driver, page by page: of other drivers there may be many."""
    query = {"limit": str(_PAGE)}
    while True:
        page = await api.request("the PersistentVolumes", "GET", "/api/v1/persistentvolumes", query)
        for found in page["items"]:
            if (found["spec"].get("csi") or {}).get("driver") == DRIVER:
                yield found
        if not (more := page["metadata"].get("continue")):
            return
        query["continue"] = more


class PersistentVolumes:
    """Which PersistentVolumes refer to a volume of this driver, as it is when asked.

    A listing serves all who asked before it began: a hundred deletions at once cost a few, one at a time.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._listing = asyncio.Lock()
        self._asked = self._answered = 0
        """Numbers of the last question, and of the last that the last listing answers."""
        self._found: dict[str, list[dict[str, Any]]] = {}

    async def of(self, volume: str) -> list[dict[str, Any]]:
        """Those whose volumeHandle is `volume`."""
        self._asked = number = self._asked + 1
        async with self._listing:
            if self._answered < number:
                answers, listed = self._asked, dict[str, list[dict[str, Any]]]()
                async for found in persistent_volumes(self._api):
                    listed.setdefault(found["spec"]["csi"]["volumeHandle"], []).append(found)
                self._found, self._answered = listed, answers
            return self._found.get(volume, [])


def keeps_its_volume(found: dict[str, Any], *, alone: bool) -> bool:
    """Whether a PersistentVolume stands against deleting what it refers to. `alone`: it is the only one.

    One with policy Delete does not, when it is released or is itself being deleted: it is the one that asks.
    """
    phase = found.get("status", {}).get("phase", "")
    if found["spec"].get("persistentVolumeReclaimPolicy") != "Delete":
        return True
    if "deletionTimestamp" in found["metadata"]:
        return phase == "Bound" and not alone
    return phase not in ("Released", "Failed")


async def _get(api: Api, what: str, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = await api.request(what, "GET", path)
    except NotFound:
        return None
    return found
