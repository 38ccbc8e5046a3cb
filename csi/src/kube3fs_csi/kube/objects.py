"""Reads and writes objects of our kinds."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, TypeVar

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from kube3fs_crds import GROUP, VERSION, ApiModel, Resource
from kube3fs_csi.serving.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable

R = TypeVar("R", bound=Resource)

REQUEST_SECONDS = 15.0
_APPLY = "application/apply-patch+yaml"
_JSON_PATCH = "application/json-patch+json"
_MERGE_PATCH = "application/merge-patch+json"


class Page(NamedTuple):
    """All objects of a kind, and the version of the list that a watch continues from."""

    items: list[Any]
    version: str


class Objects:
    """The API server, for cluster-scoped and namespaced kinds of ours alike."""

    def __init__(self, api: client.ApiClient, manager: str) -> None:
        self._custom = client.CustomObjectsApi(api)
        self._manager = manager
        self.api = api

    async def get(self, kind: type[R], name: str) -> R | None:
        """One cluster-scoped object, asked now."""
        try:
            with translated(f"{kind.__name__} {name}"):
                body = await self._custom.get_cluster_custom_object(*where(kind), name, **_TIMEOUT)
        except NotFound:
            return None
        return parse(kind, body)

    async def create(self, wanted: Resource) -> None:
        """Makes a cluster-scoped object; AlreadyExists if it is there."""
        kind, name = type(wanted), wanted.metadata.name
        body = wanted.as_object() | {"kind": kind.__name__}
        body.pop("status", None)
        with translated(f"{kind.__name__} {name}"):
            await self._custom.create_cluster_custom_object(
                *where(kind), body, field_manager=self._manager, **_TIMEOUT
            )

    async def merge(self, kind: type[R], name: str, patch: dict[str, Any]) -> R:
        """Changes some fields."""
        with translated(f"{kind.__name__} {name}"):
            body = await self._custom.patch_cluster_custom_object(
                *where(kind), name, patch, field_manager=self._manager, _content_type=_MERGE_PATCH, **_TIMEOUT
            )
        return parse(kind, body)

    async def apply_status(self, kind: type[Resource], name: str, status: ApiModel) -> None:
        """Makes `status` the whole status."""
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": kind.__name__,
            "metadata": {"name": name},
            "status": status.as_object(),
        }
        with translated(f"{kind.__name__} {name}"):
            await self._custom.patch_cluster_custom_object_status(
                *where(kind),
                name,
                body,
                field_manager=self._manager,
                force=True,
                _content_type=_APPLY,
                **_TIMEOUT,
            )

    async def delete(self, kind: type[Resource], name: str) -> None:
        """Has the object go, once its finalizers are gone. None there is success."""
        with contextlib.suppress(NotFound), translated(f"{kind.__name__} {name}"):
            await self._custom.delete_cluster_custom_object(*where(kind), name, **_TIMEOUT)

    async def remove_finalizer(self, found: Resource, finalizer: str) -> None:
        """Takes `finalizer` off an object as it was read; the object may go then."""
        if finalizer not in found.metadata.finalizers:
            return
        path = f"/metadata/finalizers/{found.metadata.finalizers.index(finalizer)}"
        patch = [{"op": "test", "path": path, "value": finalizer}, {"op": "remove", "path": path}]
        kind, name = type(found), found.metadata.name
        with contextlib.suppress(NotFound), translated(f"{kind.__name__} {name}"):
            await self._custom.patch_cluster_custom_object(
                *where(kind), name, patch, field_manager=self._manager, _content_type=_JSON_PATCH, **_TIMEOUT
            )

    async def list(self, kind: type[R], field_selector: str) -> Page:
        """All objects of a kind, in all namespaces."""
        with translated(f"{kind.__name__} objects"):
            body: Any = await self._custom.list_cluster_custom_object(
                *where(kind), field_selector=field_selector, **_TIMEOUT
            )
        return Page([parse(kind, item) for item in body["items"]], body["metadata"]["resourceVersion"])


_TIMEOUT: Any = {"_request_timeout": REQUEST_SECONDS}


def where(kind: type[Resource]) -> tuple[str, str, str]:
    """Group, version and plural."""
    return GROUP, VERSION, kind.names.plural


def parse(kind: type[R], body: Any) -> R:
    """The model of an object, without the record of who set which field."""
    metadata = {key: value for key, value in body["metadata"].items() if key != "managedFields"}
    return kind.model_validate(body | {"metadata": metadata})


@contextlib.contextmanager
def translated(what: str) -> Any:
    """Turns the client's errors into ours."""
    try:
        yield
    except ApiException as error:
        words = sentence(error)
        if error.status == 404:
            raise NotFound(f"{what} does not exist: {words}") from error
        if error.status == 409:
            raise AlreadyExists(f"{what}: {words}") from error
        if error.status in (400, 422):
            raise InvalidArgument(f"the API server refused {what}: {words}") from error
        raise Unavailable(f"the API server refused {what}: {words}; retry") from error
    except (OSError, TimeoutError, aiohttp.ClientError) as error:
        raise Unavailable(
            f"the API server does not answer ({error or type(error).__name__}); retry"
        ) from error


def sentence(error: ApiException) -> str:
    """The API server's own words, without headers and JSON around them."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


@contextlib.asynccontextmanager
async def connected(kubeconfig: str) -> AsyncIterator[client.ApiClient]:
    """The API server of `kubeconfig`, or of the pod's service account if that is empty."""
    if kubeconfig:
        await config.load_kube_config(kubeconfig)
    else:
        config.load_incluster_config()
    async with client.ApiClient() as api:
        yield api
