"""Requests to the API server, by their paths.

Of kubernetes.aio this uses the connection: TLS, credentials and their renewal. Its methods for each resource
are generated code by the megabyte: CoreV1Api alone takes 0.6 s and 25 MiB to import, on every node.
"""

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from kube3fs_csi.serving.errors import AlreadyExists, CsiError, InvalidArgument, NotFound, Unavailable

REQUEST_SECONDS = 15.0
QUIET_SECONDS = 150.0
"""A watch that says nothing for so long has lost its API server: a live one sends a bookmark every minute."""


class Api:
    """The API server. `what` is what a request is about, for the words of its errors."""

    def __init__(self, client: ApiClient) -> None:
        self._client = client

    async def request(
        self,
        what: str,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: object = None,
        content_type: str = "application/json",
        seconds: float = REQUEST_SECONDS,
    ) -> Any:
        """The JSON that the API server answers."""
        with _answered():
            limits = aiohttp.ClientTimeout(seconds)
            response = await self._send(what, method, path, query or {}, body, content_type, limits)
            async with response:
                return json.loads(await response.read())

    async def watch(
        self, what: str, path: str, query: Mapping[str, str], seconds: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The events of a watch, until the API server ends it."""
        query = {**query, "watch": "true"}
        with _answered():
            limits = aiohttp.ClientTimeout(seconds, sock_read=QUIET_SECONDS)
            response = await self._send(what, "GET", path, query, None, "application/json", limits)
            async with response:
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise refusal(what, event["object"]["code"], event["object"]["message"])
                    yield event

    async def _send(
        self,
        what: str,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: object,
        content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
        )
        response: aiohttp.ClientResponse = (
            await self._client.call_api(*request, _request_timeout=limits)
        ).response
        if not response.ok:
            raise refusal(what, response.status, sentence(await response.read(), response))
        return response


def refusal(what: str, status: int, words: str) -> CsiError:
    """Our error for one of the API server."""
    if status == 404:
        return NotFound(f"{what} does not exist: {words}")
    if status == 409:
        return AlreadyExists(f"{what}: {words}")
    if status in (400, 422):
        return InvalidArgument(f"the API server refused {what}: {words}")
    return Unavailable(f"the API server refused {what}: {words}; retry")


def sentence(body: bytes, response: aiohttp.ClientResponse) -> str:
    """The API server's own words, without the JSON around them."""
    try:
        return str(json.loads(body)["message"])
    except (TypeError, ValueError, KeyError):
        return f"{response.status} {response.reason}"


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        yield
    except (OSError, TimeoutError, aiohttp.ClientError, json.JSONDecodeError) as error:
        why = str(error) or type(error).__name__
        raise Unavailable(f"the API server does not answer as it should ({why}); retry") from error


@contextlib.asynccontextmanager
async def connected(kubeconfig: str) -> AsyncIterator[Api]:
    """The API server of `kubeconfig`, or of the pod's service account if that is empty."""
    configuration = Configuration()
    if kubeconfig:
        await config.load_kube_config(kubeconfig, client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    # Or aiohttp asks two threads before each request: for ~/.netrc, and for the proxies of the environment.
    configuration.client_session_kwargs = {"trust_env": False}
    async with ApiClient(configuration) as client:
        yield Api(client)
