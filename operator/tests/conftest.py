"""Builders of small worlds, as the API server's objects."""

import datetime
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from kube3fs_crds import StorageCluster, StorageNode, StorageSnapshot, StorageVolume
from kube3fs_operator import render
from kube3fs_operator.views import ClusterKey, NodeView, VolumeView, World, handle_of

Body = dict[str, Any]
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
GIB = 1 << 30


def world_of(bodies: Iterable[Mapping[str, Any]]) -> World:
    """The world in which these objects exist."""
    tables: dict[str, dict[Any, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for body in bodies:
        kind = body["kind"]
        if kind == "Node":
            tables["nodes"][body["metadata"]["name"]].append(NodeView.of(body))
        elif kind == "StorageCluster":
            cluster = StorageCluster.model_validate(body)
            tables["clusters"][ClusterKey.of(cluster)].append(cluster)
        elif kind == "StorageNode":
            tables["storage_nodes"][body["metadata"]["name"]].append(StorageNode.model_validate(body))
        elif kind in ("StorageVolume", "StorageSnapshot"):
            view = (
                VolumeView.of_volume(StorageVolume.model_validate(body))
                if kind == "StorageVolume"
                else VolumeView.of_snapshot(StorageSnapshot.model_validate(body))
            )
            tables["volumes_by_cluster"][view.cluster].append(view)
            tables["volumes_by_node"][view.node].append(view)
        elif kind in ("PersistentVolume", "VolumeSnapshotContent"):
            handle = handle_of(body, render.DRIVER)
            if handle:
                tables["claims"][handle].append(body["metadata"]["name"])
        else:
            tables["classes"][render.key_of(body)].append(body)
    return World(**{name: dict(table) for name, table in tables.items()})


class Make:
    """Objects with everything that is not of interest filled in."""

    @staticmethod
    def cluster(name: str = "demo", *, path: str = "", created: int = 0, **more: Any) -> Body:
        embedded: Body = {"path": path or f"/var/lib/kube3fs/{name}"}
        if "provisioning" in more:
            embedded["provisioning"] = more.pop("provisioning")
        if "selector" in more:
            embedded["nodeSelector"] = more.pop("selector")
        metadata: Body = {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "generation": 1,
            "resourceVersion": "1",
            "finalizers": [render.FINALIZER],
            "creationTimestamp": f"2026-01-01T00:00:{created:02d}Z",
        }
        if more.pop("deleting", False):
            metadata["deletionTimestamp"] = "2026-01-01T01:00:00Z"
        return {
            "apiVersion": "kube3fs.io/v1alpha1",
            "kind": "StorageCluster",
            "metadata": metadata,
            "spec": {"engine": {"embedded": embedded}, **more},
        }

    @staticmethod
    def node(name: str = "node-a", *, ready: bool = True, tainted: bool = False, **labels: str) -> Body:
        taints = [{"key": "kube3fs.io/agent-not-ready", "effect": "NoSchedule"}] if tainted else []
        return {
            "kind": "Node",
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "Unknown"}]},
        }

    @staticmethod
    def storage_node(name: str = "node-a", *clusters: str, **more: Any) -> Body:
        """A node whose plugin has reported and serves these clusters."""
        entry = {
            "namespace": "team",
            "ready": more.get("folder_ready", True),
            "message": more.get("message", ""),
            "backend": "btrfs",
            "features": {"quota": True, "reflink": True, "snapshot": True},
            "capacityBytes": 100 * GIB,
            "availableBytes": more.get("available", 40 * GIB),
            "scratchBytes": more.get("scratch", (0, 0))[0],
            "scratchVolumes": more.get("scratch", (0, 0))[1],
            **({"reservedBytes": more["reserved"]} if "reserved" in more else {}),
        }
        return {
            "apiVersion": "kube3fs.io/v1alpha1",
            "kind": "StorageNode",
            "metadata": {"name": name, "uid": f"uid-{name}", "resourceVersion": "1"},
            "spec": {
                "clusters": [
                    {"namespace": "team", "name": c, "path": f"/var/lib/kube3fs/{c}"} for c in clusters
                ]
            },
            "status": {
                "conditions": [
                    {
                        "type": "Ready",
                        "status": more.get("ready", "True"),
                        "reason": "Reported",
                        "message": more.get("plugin_message", ""),
                        "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }
                ],
                "clusters": [{**entry, "name": c, "path": f"/var/lib/kube3fs/{c}"} for c in clusters],
            },
        }

    @staticmethod
    def volume(name: str = "pvc-1", *, node: str = "node-a", cluster: str = "demo", **more: Any) -> Body:
        metadata: Body = {"name": name, "finalizers": ["kube3fs.io/node"]}
        if "created" in more:
            metadata["creationTimestamp"] = more["created"]
        if more.get("deleting"):
            metadata["deletionTimestamp"] = "2026-01-01T01:00:00Z"
        return {
            "apiVersion": "kube3fs.io/v1alpha1",
            "kind": "StorageVolume",
            "metadata": metadata,
            "spec": {
                "nodeName": node,
                "clusterRef": {"namespace": "team", "name": cluster},
                "capacityBytes": more.get("size", GIB),
            },
        }

    @staticmethod
    def persistent_volume(name: str = "pvc-1", *, driver: str = "csi.kube3fs.io") -> Body:
        return {
            "kind": "PersistentVolume",
            "metadata": {"name": f"pv-{name}"},
            "spec": {"csi": {"driver": driver, "volumeHandle": name}},
        }

    @staticmethod
    def snapshot(name: str = "snap-1", *, node: str = "node-a", cluster: str = "demo") -> Body:
        return {
            "apiVersion": "kube3fs.io/v1alpha1",
            "kind": "StorageSnapshot",
            "metadata": {"name": name, "finalizers": ["kube3fs.io/node"]},
            "spec": {
                "nodeName": node,
                "volumeName": "pvc-1",
                "clusterRef": {"namespace": "team", "name": cluster},
            },
        }

    @staticmethod
    def storage_class(name: str, owner: str | None) -> Body:
        labels = render.owner_labels(ClusterKey("team", owner)) if owner else {}
        return {"kind": "StorageClass", "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels}}


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def world() -> Callable[[Iterable[Mapping[str, Any]]], World]:
    return world_of


@pytest.fixture
def now() -> datetime.datetime:
    return NOW
