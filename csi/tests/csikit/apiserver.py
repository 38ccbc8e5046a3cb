"""A stand-in for the API server: our kinds and pods behind the real HTTP paths, with watches and finalizers.

Server-side apply is a merge without field ownership, and schemas and CEL rules are not checked: tests/e2e has
the real one. What else the driver relies on is as there: generations, deletion with finalizers, conflicts on
create, watches that replay from a resource version.
"""

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from kube3fs_crds import API_VERSION, KINDS

Body = dict[str, Any]
Key = tuple[str, str, str]  # plural, namespace, name

_KINDS = {kind.names.plural: kind.__name__ for kind in KINDS} | {
    "pods": "Pod",
    "events": "Event",
    "leases": "Lease",
    "nodes": "Node",
    "persistentvolumes": "PersistentVolume",
    "persistentvolumeclaims": "PersistentVolumeClaim",
    "volumesnapshotcontents": "VolumeSnapshotContent",
}


class ApiServer:
    """Objects in a dict, and everything that happened to them in a list."""

    def __init__(self) -> None:
        self.objects: dict[Key, Body] = {}
        self.url = ""
        self.watch_faults: list[str] = []
        """What becomes of the next watches: `end`, an `ERROR` event of code 410, a `410`, or `silence`."""
        self.listed: list[str] = []
        """The plurals of which lists were asked for."""
        self._events: list[tuple[int, str, str, Body]] = []
        self._version = 1
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ApiServer"]:
        """Serves on a free port of the loopback interface."""
        app = web.Application()
        for scope in ("", "/namespaces/{namespace}"):
            path = f"/apis/{API_VERSION}{scope}/{{plural}}"
            app.router.add_get(path, self._list)
            app.router.add_post(path, self._create)
            app.router.add_get(f"{path}/{{name}}", self._get)
            app.router.add_delete(f"{path}/{{name}}", self._delete)
            app.router.add_patch(f"{path}/{{name}}", self._patch)
            app.router.add_patch(f"{path}/{{name}}/status", self._patch_status)
        app.router.add_get("/api/v1/namespaces/{namespace}/{plural}/{name}", self._get)
        app.router.add_get("/api/v1/{plural}/{name}", self._get)
        app.router.add_get("/api/v1/{plural}", self._list)
        app.router.add_post("/api/v1/namespaces/{namespace}/{plural:events}", self._create)
        app.router.add_get("/apis/snapshot.storage.k8s.io/v1/{plural}/{name}", self._get)
        app.router.add_patch(
            "/apis/coordination.k8s.io/v1/namespaces/{namespace}/{plural:leases}/{name}", self._apply
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def kubeconfig(self, path: Path) -> Path:
        """Writes a kubeconfig for this server."""
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": {"server": self.url}}],
                    "users": [{"name": "test", "user": {"token": "test"}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
                }
            )
        )
        return path

    async def put(self, plural: str, body: Body) -> None:
        """Makes an object, as some other client would."""
        meta = body["metadata"]
        await self._store((plural, meta.get("namespace", ""), meta["name"]), body, "ADDED")

    async def delete(self, plural: str, name: str) -> None:
        """Marks an object for deletion, as some other client would."""
        body = copy.deepcopy(self.objects[plural, "", name])
        body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        await self._store((plural, "", name), body, "MODIFIED")

    async def patch_status(self, plural: str, name: str, status: Body, namespace: str = "") -> None:
        """Sets a status, as some other client would."""
        body = copy.deepcopy(self.objects[plural, namespace, name])
        body["status"] = status
        await self._store((plural, namespace, name), body, "MODIFIED")

    def get(self, plural: str, name: str) -> Body | None:
        """A cluster-scoped object."""
        return self.objects.get((plural, "", name))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        plural = request.match_info["plural"]
        selector = request.query.get("fieldSelector", "")
        if request.query.get("watch") in ("true", "True", "1"):
            return await self._watch(request, plural, selector)
        self.listed.append(plural)
        items = [
            body
            for (kind, _, _), body in self.objects.items()
            if kind == plural and _selected(body, selector)
        ]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, plural: str, selector: str) -> web.StreamResponse:
        fault = self.watch_faults.pop(0) if self.watch_faults else None
        if fault == "410":
            return _status(410, "too old resource version")
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if fault == "ERROR":
            error = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
            await response.write(json.dumps(error).encode() + b"\n")
        if fault == "silence":
            await asyncio.Event().wait()
        if fault:
            return response
        seen = int(request.query["resourceVersion"])
        while True:
            for version, kind, event, body in list(self._events):
                if version > seen and kind == plural and _selected(body, selector):
                    await response.write(json.dumps({"type": event, "object": body}).encode() + b"\n")
            seen = self._version
            async with self._changed:
                await self._changed.wait_for(partial(self._is_newer, seen))

    def _is_newer(self, version: int) -> bool:
        return self._version > version

    async def _create(self, request: web.Request) -> web.Response:
        body = await request.json()
        key = (
            request.match_info["plural"],
            request.match_info.get("namespace", ""),
            body["metadata"]["name"],
        )
        if key in self.objects:
            return _status(409, f'"{key[2]}" already exists')
        body.pop("status", None)
        return web.json_response(await self._store(key, body, "ADDED"), status=201)

    async def _get(self, request: web.Request) -> web.Response:
        body = self.objects.get(_key(request))
        return web.json_response(body) if body else _status(404, f'"{_key(request)[2]}" not found')

    async def _delete(self, request: web.Request) -> web.Response:
        key = _key(request)
        if key not in self.objects:
            return _status(404, f'"{key[2]}" not found')
        body = copy.deepcopy(self.objects[key])
        options = await request.json() if request.can_read_body else {}
        wanted = options.get("preconditions", {}).get("resourceVersion")
        if wanted not in (None, body["metadata"]["resourceVersion"]):
            return _status(409, "the precondition failed")
        body["metadata"].setdefault("deletionTimestamp", "2026-01-01T00:00:00Z")
        await self._store(key, body, "MODIFIED")
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _patch(self, request: web.Request) -> web.Response:
        key = _key(request)
        if key not in self.objects:
            return _status(404, f'"{key[2]}" not found')
        patch, body = await request.json(), copy.deepcopy(self.objects[key])
        if isinstance(patch, list):
            for step in patch:
                if not _step(body, step):
                    return _status(422, "the patch's test failed")
        else:
            _merge(body, patch)
        return web.json_response(await self._store(key, body, "MODIFIED"))

    async def _apply(self, request: web.Request) -> web.Response:
        key = _key(request)
        body = await request.json()
        body["metadata"] = self.objects.get(key, {"metadata": {}})["metadata"] | body["metadata"]
        event = "MODIFIED" if key in self.objects else "ADDED"
        return web.json_response(await self._store(key, body, event))

    async def _patch_status(self, request: web.Request) -> web.Response:
        key = _key(request)
        if key not in self.objects:
            return _status(404, f'"{key[2]}" not found')
        body = copy.deepcopy(self.objects[key])
        body["status"] = (await request.json())["status"]
        return web.json_response(await self._store(key, body, "MODIFIED"))

    async def _store(self, key: Key, body: Body, event: str) -> Body:
        before = self.objects.get(key)
        body.setdefault("apiVersion", API_VERSION)
        body.setdefault("kind", _KINDS[key[0]])
        self._version += 1
        meta = body["metadata"]
        meta["resourceVersion"] = str(self._version)
        meta.setdefault("uid", f"uid-{self._version}")
        meta.setdefault("generation", 1)
        if before is not None and before.get("spec") != body.get("spec"):
            meta["generation"] += 1
        if meta.get("deletionTimestamp") and not meta.get("finalizers"):
            self.objects.pop(key, None)
            event = "DELETED"
        else:
            self.objects[key] = body
        self._events.append((self._version, key[0], event, copy.deepcopy(body)))
        async with self._changed:
            self._changed.notify_all()
        return body


def _key(request: web.Request) -> Key:
    info = request.match_info
    return info["plural"], info.get("namespace", ""), info["name"]


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


def _selected(body: Body, selector: str) -> bool:
    for term in filter(None, selector.split(",")):
        path, _, wanted = term.partition("=")
        found: Any = body
        for part in path.split("."):
            found = found.get(part, {})
        if found != wanted:
            return False
    return True


def _merge(into: Body, patch: Body) -> None:
    for name, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        elif value is None:
            into.pop(name, None)
        else:
            into[name] = value


def _step(body: Body, step: Body) -> bool:
    *parents, last = step["path"].strip("/").split("/")
    at: Any = body
    for parent in parents:
        at = at[parent]
    place: Any = int(last) if isinstance(at, list) else last
    if step["op"] == "test":
        return bool(len(at) > place and at[place] == step["value"])
    del at[place]
    return True
