"""Reads and writes objects of our kinds."""

import contextlib
import datetime
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from kube3fs_crds import GROUP, VERSION, ApiModel, Resource
from kube3fs_csi.kube.api import Api
from kube3fs_csi.serving.errors import NotFound

R = TypeVar("R", bound=Resource)

_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"


class Page(NamedTuple):
    """All objects of a kind as JSON, and the version of the list that a watch continues from."""

    bodies: list[dict[str, Any]]
    version: str


class Objects:
    """The API server, for cluster-scoped and namespaced kinds of ours alike."""

    def __init__(self, api: Api, manager: str) -> None:
        self._api = api
        self._manager = {"fieldManager": manager}

    async def get(self, kind: type[R], name: str) -> R | None:
        """One cluster-scoped object, asked now."""
        try:
            body = await self._api.request(*_one(kind, name, "GET"))
        except NotFound:
            return None
        return parse(kind, body)

    async def create(self, wanted: Resource) -> None:
        """Makes a cluster-scoped object; AlreadyExists if it is there."""
        kind, name = type(wanted), wanted.metadata.name
        body = wanted.as_object() | {"kind": kind.__name__}
        body.pop("status", None)
        await self._api.request(f"{kind.__name__} {name}", "POST", _all(kind), self._manager, body)

    async def merge(self, kind: type[R], name: str, patch: dict[str, Any]) -> R:
        """Changes some fields."""
        where = _one(kind, name, "PATCH")
        return parse(kind, await self._api.request(*where, self._manager, patch, _MERGE_PATCH))

    async def apply_status(self, kind: type[Resource], name: str, status: ApiModel) -> None:
        """Makes `status` the whole status."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": kind.__name__,
            "metadata": {"name": name},
            "status": status.as_object(),
        }
        what, method, path = _one(kind, name, "PATCH")
        await self._api.request(
            what, method, f"{path}/status", self._manager | {"force": "true"}, body, _APPLY
        )

    async def renew_lease(
        self, namespace: str, name: str, holder: str, owner: Resource, seconds: int
    ) -> None:
        """Says in a Lease, which goes with `owner`, that `holder` is at work now, and when to doubt it."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        body = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": name,
                "ownerReferences": [
                    {
                        "apiVersion": f"{GROUP}/{VERSION}",
                        "kind": type(owner).__name__,
                        "name": owner.metadata.name,
                        "uid": owner.metadata.uid,
                    }
                ],
            },
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": seconds,
                "renewTime": now.replace("+00:00", "Z"),
            },
        }
        leases = f"/apis/coordination.k8s.io/v1/namespaces/{quote(namespace, safe='')}/leases"
        path = f"{leases}/{quote(name, safe='')}"
        await self._api.request(
            f"Lease {namespace}/{name}", "PATCH", path, self._manager | {"force": "true"}, body, _APPLY
        )

    async def delete(self, kind: type[Resource], name: str, version: str | None = None) -> None:
        """Has the object go, once its finalizers are gone. None there is success.

        With `version`: only if it is still that one, AlreadyExists otherwise.
        """
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"resourceVersion": version}}
        with contextlib.suppress(NotFound):
            await self._api.request(*_one(kind, name, "DELETE"), None, body if version else None)

    async def remove_finalizer(self, found: Resource, finalizer: str) -> None:
        """Takes `finalizer` off an object as it was read; the object may go then."""
        if finalizer not in found.metadata.finalizers:
            return
        path = f"/metadata/finalizers/{found.metadata.finalizers.index(finalizer)}"
        patch = [{"op": "test", "path": path, "value": finalizer}, {"op": "remove", "path": path}]
        where = _one(type(found), found.metadata.name, "PATCH")
        with contextlib.suppress(NotFound):
            await self._api.request(*where, self._manager, patch, _JSON_PATCH)

    async def list(self, kind: type[Resource], field_selector: str) -> Page:
        """All objects of a kind, in all namespaces."""
        what, query = f"{kind.__name__} objects", {"fieldSelector": field_selector}
        body = await self._api.request(what, "GET", _all(kind), query)
        return Page(body["items"], body["metadata"]["resourceVersion"])

    def watch(
        self, kind: type[Resource], field_selector: str, version: str, seconds: int
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events after `version`, for so many seconds."""
        query = {
            "fieldSelector": field_selector,
            "resourceVersion": version,
            "timeoutSeconds": str(seconds),
            "allowWatchBookmarks": "true",
        }
        return self._api.watch(f"the watch of {kind.__name__}", _all(kind), query, seconds + 30)


def _all(kind: type[Resource]) -> str:
    return f"/apis/{GROUP}/{VERSION}/{kind.names.plural}"


def _one(kind: type[Resource], name: str, method: str) -> tuple[str, str, str]:
    return f"{kind.__name__} {name}", method, f"{_all(kind)}/{quote(name, safe='')}"


def parse(kind: type[R], body: Any) -> R:
    """The model of an object, without the record of who set which field."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return kind.model_validate(body | {"metadata": metadata})
