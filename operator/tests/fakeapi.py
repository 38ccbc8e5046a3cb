"""An API server small enough to read: objects in a dict behind the real HTTP paths that the operator uses.

Server-side apply is a merge without field ownership, except finalizers, which are replaced. A request can be
made to fail, and every write is recorded.
"""

from typing import Any

from aiohttp import web

from kube3fs_operator.api import ENDPOINTS

Body = dict[str, Any]
Key = tuple[str, str, str]  # kind, namespace, name
PLURALS = {endpoint.plural: kind for kind, endpoint in ENDPOINTS.items()}
PLURALS |= {"leases": "Lease", "nodes": "Node", "persistentvolumes": "PersistentVolume", "events": "Event"}


def status_body(code: int, message: str) -> web.Response:
    """An error as the API server answers it."""
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


class FakeApi:
    """The store, the faults and the record."""

    def __init__(self, missing_kinds: tuple[str, ...] = ()) -> None:
        self.objects: dict[Key, Body] = {}
        self.writes: list[str] = []
        self.silent: dict[str, str] = {}
        """Nodes whose plugins are silent, and when each spoke last."""
        self.fail_next: list[tuple[int, str]] = []
        self._missing = missing_kinds
        self._version = 100

    def add(self, *bodies: Body) -> None:
        """Objects that exist from the start."""
        for body in bodies:
            meta = body["metadata"]
            self.objects[body["kind"], meta.get("namespace", ""), meta["name"]] = body

    def app(self) -> web.Application:
        """The server."""
        app = web.Application()
        for prefix in ("/api/v1", "/apis/{group}/{version}"):
            for scope in ("", "/namespaces/{namespace}"):
                app.router.add_route("*", f"{prefix}{scope}/{{plural}}", self._collection)
                app.router.add_route("*", f"{prefix}{scope}/{{plural}}/{{name}}", self._object)
                app.router.add_route("*", f"{prefix}{scope}/{{plural}}/{{name}}/status", self._object)
        return app

    async def _collection(self, request: web.Request) -> web.Response:
        kind = PLURALS[request.match_info["plural"]]
        if request.method == "POST":
            self.writes.append(f"create {kind}")
            return web.json_response(await request.json(), status=201)
        items = [body for (k, _, _), body in self.objects.items() if k == kind]
        return web.json_response({"kind": f"{kind}List", "metadata": {}, "items": items})

    async def _object(self, request: web.Request) -> web.Response:
        kind = PLURALS[request.match_info["plural"]]
        key = (kind, request.match_info.get("namespace", ""), request.match_info["name"])
        if kind in self._missing:
            return status_body(404, "the server could not find the requested resource")
        if request.method == "GET":
            return (
                web.json_response(self.objects[key]) if key in self.objects else status_body(404, "not found")
            )
        if self.fail_next:
            return status_body(*self.fail_next.pop(0))
        self.writes.append(f"{request.method.lower()} {kind} {key[2]}")
        if request.method == "DELETE":
            return self._delete(key)
        patch = await request.json()
        if isinstance(patch, list):
            return self._json_patch(key, patch)
        return self._apply(key, patch)

    def _delete(self, key: Key) -> web.Response:
        body = self.objects.get(key)
        if body is None:
            return status_body(404, "not found")
        if body["metadata"].get("finalizers"):
            body["metadata"]["deletionTimestamp"] = "2026-01-01T02:00:00Z"
        else:
            del self.objects[key]
        return web.json_response({"kind": "Status", "status": "Success"})

    def _apply(self, key: Key, patch: Body) -> web.Response:
        body = self.objects.setdefault(
            key, {"kind": key[0], "metadata": {"name": key[2], "uid": f"uid-{key[2]}"}}
        )
        _merge(body, patch)
        return self._stored(key, body)

    def _json_patch(self, key: Key, patch: list[Body]) -> web.Response:
        body = self.objects[key]
        for step in patch:
            *parents, last = step["path"].strip("/").split("/")
            at: Any = body
            for parent in parents:
                at = at[int(parent)] if isinstance(at, list) else at[parent]
            place: Any = int(last) if isinstance(at, list) else last
            if step["op"] == "test" and at[place] != step["value"]:
                return status_body(422, "test failed")
            if step["op"] == "remove":
                del at[place]
        return self._stored(key, body)

    def _stored(self, key: Key, body: Body) -> web.Response:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        if body["metadata"].get("deletionTimestamp") and not body["metadata"].get("finalizers"):
            del self.objects[key]
        return web.json_response(body)


def _merge(into: Body, patch: Body) -> None:
    for name, value in patch.items():
        if name == "status" and into["kind"] == "StorageNode":
            into[name] = into.get(name, {}) | value  # of which others write the rest
        elif isinstance(value, dict) and isinstance(into.get(name), dict) and name != "status":
            _merge(into[name], value)
        else:
            into[name] = value
