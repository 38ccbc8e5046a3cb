"""For whom volumes are made: claims, VolumeSnapshotContents and PersistentVolumes, asked now."""

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


async def _get(api: Api, what: str, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = await api.request(what, "GET", path)
    except NotFound:
        return None
    return found
