"""The thin edge to the API server: the only place that writes, and the reads that gates need to be fresh."""

import datetime
import json
import logging
import uuid
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from kube3fs_crds import (
    GROUP,
    VERSION,
    Condition,
    NodeCluster,
    StorageCluster,
    StorageClusterStatus,
    StorageNode,
    lease_name,
)
from kube3fs_operator import metrics, render
from kube3fs_operator.faults import Faults, Step
from kube3fs_operator.gates import NODE_FINALIZER
from kube3fs_operator.views import AGENT_TAINT, ClassKey, VolumeView

FIELD_MANAGER = "kube3fs-operator"
APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
PAGE = 500
log = logging.getLogger(__name__)


class Endpoint(NamedTuple):
    """Where a kind lives in the API."""

    group: str
    version: str
    plural: str


ENDPOINTS = {
    "StorageCluster": Endpoint(GROUP, VERSION, "storageclusters"),
    "StorageNode": Endpoint(GROUP, VERSION, "storagenodes"),
    "StorageVolume": Endpoint(GROUP, VERSION, "storagevolumes"),
    "StorageSnapshot": Endpoint(GROUP, VERSION, "storagesnapshots"),
    "StorageClass": Endpoint("storage.k8s.io", "v1", "storageclasses"),
    "VolumeSnapshotClass": Endpoint("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses"),
}


def is_missing(error: ApiException) -> bool:
    """The object, or its whole kind, does not exist."""
    return bool(error.status == 404)


def sentence(error: ApiException) -> str:
    """The API server's own words, without headers and JSON around them."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"


class NodeLease(NamedTuple):
    """The Lease of a node plugin."""

    node: str
    renewed: str
    """When it was renewed last, as the Lease has it: to be compared with itself only."""
    seconds: float
    """How long it holds."""


class Api:
    """Reads and writes. Every write has a name, at which tests may stop the process."""

    def __init__(
        self,
        api_client: client.ApiClient,
        identity: str,
        faults: Faults,
        timeout: float = 30.0,
        namespace: str = "default",
    ) -> None:
        self._leases = client.CoordinationV1Api(api_client)
        self._namespace = namespace
        self._objects = client.CustomObjectsApi(api_client)
        self._core = client.CoreV1Api(api_client)
        self._identity = identity
        self._faults = faults
        self._timeout = timeout

    # ---- writes ----

    async def apply_finalizer(self, cluster: StorageCluster) -> None:
        """Add our finalizer."""
        await self._apply_cluster("finalizer", render.finalizer(cluster, present=True))

    async def release(self, cluster: StorageCluster) -> None:
        """Take our finalizer away: the object goes."""
        await self._apply_cluster("release", render.finalizer(cluster, present=False))

    async def apply_class(self, body: dict[str, Any]) -> None:
        """Make or change a StorageClass or VolumeSnapshotClass."""
        await self._apply("class", body)

    async def apply_node(self, node: str, clusters: list[NodeCluster]) -> None:
        """Say what a node should serve."""
        await self._apply("node", render.node_spec(node, clusters))

    async def apply_status(self, cluster: StorageCluster, status: StorageClusterStatus) -> int:
        """Write the whole status. Returns the object's new resourceVersion."""
        where = ENDPOINTS["StorageCluster"]
        body = {
            "apiVersion": cluster.api_version,
            "kind": "StorageCluster",
            "metadata": {
                "namespace": cluster.metadata.namespace,
                "name": cluster.metadata.name,
                "uid": cluster.metadata.uid,
            },
            "status": status.as_object(),
        }
        with self._write("status"):
            answer: Any = await self._objects.patch_namespaced_custom_object_status(
                *where[:2],
                cluster.metadata.namespace or "",
                where.plural,
                cluster.metadata.name,
                body,
                field_manager=FIELD_MANAGER,
                force=True,
                _content_type=APPLY,
                _request_timeout=self._timeout,
            )
        return int(answer["metadata"]["resourceVersion"])

    async def mark_silent(self, node: StorageNode, ready: Condition) -> None:
        """Write the condition Ready of a StorageNode whose plugin writes none; it writes its own again."""
        body = {
            "apiVersion": node.api_version,
            "kind": "StorageNode",
            "metadata": {"name": node.metadata.name, "uid": node.metadata.uid},
            "status": {"conditions": [ready.as_object()]},
        }
        with self._write("node-silent"):
            await self._objects.patch_cluster_custom_object_status(
                *ENDPOINTS["StorageNode"],
                node.metadata.name,
                body,
                field_manager=FIELD_MANAGER,
                force=True,
                _content_type=APPLY,
                _request_timeout=self._timeout,
            )

    async def delete_class(self, key: ClassKey, uid: str) -> None:
        """Delete a class, if it is still that one."""
        await self._delete("class-delete", key.kind, key.name, uid)

    async def delete_volume(self, volume: VolumeView) -> None:
        """Delete a StorageVolume; its node then deletes the data."""
        await self._delete("volume-delete", volume.kind, volume.name)

    async def delete_node(self, node: StorageNode) -> None:
        """Delete a StorageNode, if it is still that one."""
        await self._delete("node-delete", "StorageNode", node.metadata.name, node.metadata.uid)

    async def give_up(self, volume: VolumeView) -> None:
        """Drop the node's finalizer from a deleted volume whose node will never do it."""
        at = volume.finalizers.index(NODE_FINALIZER)
        path = f"/metadata/finalizers/{at}"
        patch = [{"op": "test", "path": path, "value": NODE_FINALIZER}, {"op": "remove", "path": path}]
        where = ENDPOINTS[volume.kind]
        with self._write("give-up"):
            await self._objects.patch_cluster_custom_object(
                *where, volume.name, patch, _content_type=JSON_PATCH, _request_timeout=self._timeout
            )

    async def remove_taint(self, node: str) -> None:
        """Let pods onto a node that can serve now. Read afresh: other taints come and go beside ours."""
        body = await self._core.read_node(node, _request_timeout=self._timeout)
        for at, taint in enumerate((body.spec.taints if body.spec else None) or ()):
            if taint.key != AGENT_TAINT:
                continue
            path = f"/spec/taints/{at}"
            patch = [
                {"op": "test", "path": f"{path}/key", "value": AGENT_TAINT},
                {"op": "remove", "path": path},
            ]
            with self._write("taint"):
                await self._core.patch_node(
                    node, patch, _content_type=JSON_PATCH, _request_timeout=self._timeout
                )
            return

    async def event(self, cluster: StorageCluster, kind: str, reason: str, note: str) -> None:
        """Tell the user in `kubectl describe`. Lost when it fails: the conditions say the same."""
        meta = cluster.metadata
        body = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"namespace": meta.namespace, "name": f"{meta.name}.{uuid.uuid4().hex[:16]}"},
            "eventTime": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "kube3fs.io/operator",
            "reportingInstance": self._identity,
            "action": "Reconcile",
            "reason": reason,
            "note": note[:1024],
            "type": kind,
            "regarding": {
                "apiVersion": cluster.api_version,
                "kind": "StorageCluster",
                "namespace": meta.namespace,
                "name": meta.name,
                "uid": meta.uid,
            },
        }
        with self._write("event"):
            try:
                await self._objects.create_namespaced_custom_object(
                    "events.k8s.io",
                    "v1",
                    meta.namespace or "",
                    "events",
                    body,
                    _request_timeout=self._timeout,
                )
            except ApiException as error:
                log.warning(
                    "event %s of StorageCluster %s was not taken: %s", reason, meta.name, sentence(error)
                )

    # ---- fresh reads ----

    async def node_leases(self) -> list[NodeLease]:
        """The Leases of all node plugins, as a cache of the API server has them."""
        page = await self._leases.list_namespaced_lease(
            self._namespace, resource_version="0", _request_timeout=self._timeout
        )
        return [found for body in page.items if (found := _node_lease(body))]

    async def node_renewed(self, node: str) -> str | None:
        """When the plugin of the node last renewed its Lease, asked now."""
        try:
            body = await self._leases.read_namespaced_lease(
                lease_name(node), self._namespace, _request_timeout=self._timeout
            )
        except ApiException as error:
            if is_missing(error):
                return None
            raise
        found = _node_lease(body)
        return found.renewed if found else None

    async def node_exists(self, name: str) -> bool:
        """Whether Kubernetes has the node, asked now."""
        try:
            await self._core.read_node(name, _request_timeout=self._timeout)
        except ApiException as error:
            if is_missing(error):
                return False
            raise
        return True

    async def stored(self) -> list[Mapping[str, Any]]:
        """Every StorageVolume and StorageSnapshot, asked now."""
        found: list[Mapping[str, Any]] = []
        for kind in ("StorageVolume", "StorageSnapshot"):
            more: str | None = None
            while more != "":
                page: Any = await self._objects.list_cluster_custom_object(
                    *ENDPOINTS[kind], limit=PAGE, _continue=more, _request_timeout=self._timeout
                )
                found += page["items"]
                more = page["metadata"].get("continue", "")
        return found

    async def unclaimed(self, volumes: Collection[str]) -> frozenset[str]:
        """Those volumes that no PersistentVolume refers to, asked now."""
        left = set(volumes)
        more: str | None = None
        while more != "" and left:
            page = await self._core.list_persistent_volume(
                limit=PAGE, _continue=more, _request_timeout=self._timeout
            )
            left -= {pv.spec.csi.volume_handle for pv in page.items if pv.spec and pv.spec.csi}
            more = (page.metadata and page.metadata._continue) or ""  # noqa: SLF001 - the client's `continue`
        return frozenset(left)

    # ---- how ----

    def _write(self, step: Step) -> Any:
        metrics.WRITES.labels(step).inc()
        return self._faults.around(step)

    async def _apply(self, step: Step, body: dict[str, Any]) -> None:
        with self._write(step):
            await self._objects.patch_cluster_custom_object(
                *ENDPOINTS[body["kind"]],
                body["metadata"]["name"],
                body,
                field_manager=FIELD_MANAGER,
                force=True,
                _content_type=APPLY,
                _request_timeout=self._timeout,
            )

    async def _apply_cluster(self, step: Step, body: dict[str, Any]) -> None:
        where = ENDPOINTS["StorageCluster"]
        with self._write(step):
            await self._objects.patch_namespaced_custom_object(
                *where[:2],
                body["metadata"]["namespace"],
                where.plural,
                body["metadata"]["name"],
                body,
                field_manager=FIELD_MANAGER,
                force=True,
                _content_type=APPLY,
                _request_timeout=self._timeout,
            )

    async def _delete(self, step: Step, kind: str, name: str, uid: str | None = None) -> None:
        body = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid=uid) if uid else None)
        with self._write(step):
            try:
                await self._objects.delete_cluster_custom_object(
                    *ENDPOINTS[kind], name, body=body, _request_timeout=self._timeout
                )
            except ApiException as error:
                if not is_missing(error):
                    raise


def _node_lease(body: client.V1Lease) -> NodeLease | None:
    """None of a Lease that is no node plugin's."""
    spec = body.spec
    if not spec or not spec.holder_identity or not spec.renew_time or not body.metadata:
        return None
    node = spec.holder_identity
    if body.metadata.name != lease_name(node):
        return None
    return NodeLease(node, spec.renew_time.isoformat(), float(spec.lease_duration_seconds or 0))
