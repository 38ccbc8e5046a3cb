"""kopf's part: watches fill the indices that make up the world, and every event becomes keys in the queue.

No handler acts by itself and none keeps state in annotations: what is to be done is always computed anew
from the world. kopf's own timers would put a finalizer on every object, so periodic looks come from
the queue.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import kopf
from pydantic import ValidationError

from kube3fs_crds import GROUP, VERSION, Resource, StorageCluster, StorageNode, StorageSnapshot, StorageVolume
from kube3fs_operator import render
from kube3fs_operator.queue import WorkQueue
from kube3fs_operator.reconcile import Key, NodeKey
from kube3fs_operator.views import ClassKey, ClusterKey, Handle, NodeView, VolumeView, World, handle_of

log = logging.getLogger(__name__)

_M = TypeVar("_M", bound=Resource)
Body = Mapping[str, Any]
Started = Callable[[World], None]

QUIET_SECONDS = 150.0
"""A watch that says nothing for so long has lost its API server. The CSI driver counts the same."""
REQUEST_SECONDS = 30.0
"""Any other request."""


def parse(kind: type[_M], body: Body) -> _M | None:
    """The model, or None for an object that this version does not understand: it is logged and left alone."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "managedFields"}
    try:
        return kind.model_validate({**body, "metadata": metadata})
    except ValidationError as error:
        log.error("%s %s is left alone, it cannot be read: %s", kind.__name__, metadata["name"], error)
        return None


def registry(
    queue: WorkQueue[Key], class_names: Mapping[str, str], started: Started
) -> kopf.OperatorRegistry:
    """Handlers for one run of the operator. `started` gets the world once, before the first event."""
    handlers = kopf.OperatorRegistry()
    _index(handlers)
    _events(handlers, queue)

    @kopf.on.startup(registry=handlers, id="startup")
    async def startup(**indices: Any) -> None:
        started(
            World(
                clusters=indices["clusters"],
                nodes=indices["nodes"],
                storage_nodes=indices["storage_nodes"],
                volumes_by_cluster=indices["by_cluster"],
                volumes_by_node=indices["by_node"],
                classes=indices["classes"],
                class_names=class_names,
                claims=indices["claims"],
            )
        )

    kopf.on.login(registry=handlers, id="account", errors=kopf.ErrorsMode.IGNORED)(
        kopf.login_with_service_account
    )
    kopf.on.login(registry=handlers, id="kubeconfig", errors=kopf.ErrorsMode.IGNORED)(
        kopf.login_with_kubeconfig
    )
    return handlers


# ---- indices: what the world is made of ----


def _index(handlers: kopf.OperatorRegistry) -> None:
    def clusters(body: Body, **_: Any) -> dict[ClusterKey, StorageCluster]:
        cluster = parse(StorageCluster, body)
        return {ClusterKey.of(cluster): cluster} if cluster else {}

    def storage_nodes(body: Body, **_: Any) -> dict[str, StorageNode]:
        node = parse(StorageNode, body)
        return {node.metadata.name: node} if node else {}

    def nodes(body: Body, **_: Any) -> dict[str, NodeView]:
        view = NodeView.of(body)
        return {view.name: view}

    def by_cluster(body: Body, **_: Any) -> dict[ClusterKey, VolumeView]:
        return {view.cluster: view for view in _view(body)}

    def by_node(body: Body, **_: Any) -> dict[str, VolumeView]:
        return {view.node: view for view in _view(body)}

    def classes(body: Body, **_: Any) -> dict[ClassKey, Body]:
        slim = {k: v for k, v in body["metadata"].items() if k in ("name", "uid", "labels")}
        return {render.key_of(body): {**body, "metadata": slim}}

    def claims(body: Body, **_: Any) -> dict[Handle, str]:
        handle = handle_of(body, render.DRIVER)
        return {handle: body["metadata"]["name"]} if handle else {}

    ours: list[tuple[str, Callable[..., Any]]] = [
        ("storageclusters", clusters),
        ("storagenodes", storage_nodes),
        ("storagevolumes", by_cluster),
        ("storagesnapshots", by_cluster),
        ("storagevolumes", by_node),
        ("storagesnapshots", by_node),
    ]
    for plural, function in ours:
        kopf.index(GROUP, VERSION, plural, registry=handlers, id=function.__name__)(function)
    kopf.index("", "v1", "nodes", registry=handlers, id="nodes")(nodes)
    kopf.index("", "v1", "persistentvolumes", registry=handlers, id="claims")(claims)
    kopf.index("snapshot.storage.k8s.io", "v1", "volumesnapshotcontents", registry=handlers, id="claims")(
        claims
    )
    kopf.index("storage.k8s.io", "v1", "storageclasses", registry=handlers, id="classes")(classes)
    kopf.index("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses", registry=handlers, id="classes")(
        classes
    )


def _view(body: Body) -> Iterator[VolumeView]:
    if body["kind"] == "StorageVolume":
        volume = parse(StorageVolume, body)
        if volume:
            yield VolumeView.of_volume(volume)
    else:
        snapshot = parse(StorageSnapshot, body)
        if snapshot:
            yield VolumeView.of_snapshot(snapshot)


# ---- events: which keys an object concerns ----


def _events(handlers: kopf.OperatorRegistry, queue: WorkQueue[Key]) -> None:
    known: dict[str, NodeView] = {}
    claimed: dict[tuple[str, str], Handle] = {}

    def everything(clusters: Iterable[ClusterKey], nodes: Iterable[str]) -> None:
        for cluster in clusters:
            queue.add(cluster)
        for node in nodes:
            queue.add(NodeKey(node))

    async def on_cluster(body: Body, **indices: Any) -> None:
        key = ClusterKey(body["metadata"]["namespace"], body["metadata"]["name"])
        everything([key], {*indices["nodes"], *indices["storage_nodes"]})

    async def on_storage_node(body: Body, **indices: Any) -> None:
        everything(indices["clusters"], [body["metadata"]["name"]])

    async def on_volume(body: Body, **_: Any) -> None:
        for view in _view(body):
            everything([view.cluster], [view.node])

    async def on_class(body: Body, **indices: Any) -> None:
        owner, name = render.owner(body), body["metadata"]["name"]
        named = [key for key, store in indices["clusters"].items() if name in map(render.class_name, store)]
        everything([*([owner] if owner else []), *named], [])

    async def on_node(body: Body, event: kopf.RawEvent, **indices: Any) -> None:
        view = NodeView.of(body)
        if event["type"] == "DELETED":
            known.pop(view.name, None)
        elif known.get(view.name) == view:
            return  # a heartbeat
        else:
            known[view.name] = view
        everything(indices["clusters"], [view.name])

    async def on_claim(body: Body, event: kopf.RawEvent, **indices: Any) -> None:
        key, handle = (body["kind"], body["metadata"]["name"]), handle_of(body, render.DRIVER)
        gone = event["type"] == "DELETED"
        if handle is None or (not gone and claimed.get(key) == handle):
            return
        if gone:
            claimed.pop(key, None)
        else:
            claimed[key] = handle
        everything(indices["clusters"], [])

    ours: list[tuple[str, Callable[..., Any]]] = [
        ("storageclusters", on_cluster),
        ("storagenodes", on_storage_node),
        ("storagevolumes", on_volume),
        ("storagesnapshots", on_volume),
    ]
    for plural, function in ours:
        kopf.on.event(GROUP, VERSION, plural, registry=handlers, id=function.__name__)(function)
    kopf.on.event("", "v1", "nodes", registry=handlers, id="on_node")(on_node)
    kopf.on.event("", "v1", "persistentvolumes", registry=handlers, id="on_claim")(on_claim)
    kopf.on.event(
        "snapshot.storage.k8s.io", "v1", "volumesnapshotcontents", registry=handlers, id="on_claim"
    )(on_claim)
    kopf.on.event("storage.k8s.io", "v1", "storageclasses", registry=handlers, id="on_class")(on_class)
    kopf.on.event("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses", registry=handlers, id="on_class")(
        on_class
    )


def settings() -> kopf.OperatorSettings:
    """Kopf's settings: it writes nothing by itself, and asks rarely when nothing happens."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    # Not ours: kopf takes this finalizer off every object that no handler of its own needs it on.
    chosen.persistence.finalizer = "kube3fs.io/kopf"
    chosen.watching.server_timeout = 600
    # A live watch brings a bookmark every minute: without one for longer its connection has died unnoticed.
    chosen.watching.inactivity_timeout = QUIET_SECONDS
    chosen.watching.connect_timeout = REQUEST_SECONDS
    chosen.networking.request_timeout = REQUEST_SECONDS
    return chosen
