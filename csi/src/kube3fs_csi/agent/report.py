"""What a StorageNode reports, from what was seen. Pure functions."""

import datetime
from collections.abc import Mapping, Sequence

import kube3fs_csi
from kube3fs_crds import (
    Condition,
    DaemonKernel,
    DaemonStatus,
    NodeClusterFeatures,
    NodeClusterStatus,
    RdmaStatus,
    StorageNode,
    StorageNodeStatus,
)
from kube3fs_crds.base import MOST_BYTES
from kube3fs_csi.agent.conditions import condition
from kube3fs_csi.node import scratch
from kube3fs_csi.node.clusters import Served, Wanted
from kube3fs_csi.node.sessions import DaemonState
from kube3fs_csi.node.state import Published

_NAMED = 5
"""So many of the sessions whose requests hang are named."""
_SAME_SPACE = 64 << 20
"""Free space that changed by less is not worth a write."""


def cluster_statuses(
    clusters: Mapping[str, Served], published: Sequence[Published]
) -> list[NodeClusterStatus]:
    """What each cluster has here. Pure."""
    return [
        _cluster_status(name, served, scratch.of_cluster(published, name))
        for name, served in sorted(clusters.items())
    ]


def _cluster_status(cluster: str, served: Served, volumes: Sequence[Published]) -> NodeClusterStatus:
    namespace, _, name = cluster.partition("/")
    backend, space = served.backend, served.space
    status = NodeClusterStatus(
        namespace=namespace,
        name=name,
        path=str(served.path),
        ready=served.ready,
        reason=served.reason,
        message=served.message,
        scratch_bytes=min(MOST_BYTES, sum(volume.size for volume in volumes)),
        scratch_volumes=len(volumes),
    )
    if backend is None or space is None:
        return status
    return status.model_copy(
        update={
            "backend": backend.name,
            "features": NodeClusterFeatures(**backend.features._asdict()),
            "capacity_bytes": space.capacity,
            "available_bytes": space.available,
            "allocated_bytes": min(MOST_BYTES, space.allocated),
            "file_system": backend.file_system.device,
            "reserved_bytes": min(MOST_BYTES, space.reserved),
            "volumes": space.volumes,
        }
    )


def node_status(
    node: StorageNode,
    clusters: list[NodeClusterStatus],
    about_scratch: list[Condition],
    daemon: DaemonState,
    rdma: RdmaStatus,
    at: datetime.datetime,
) -> StorageNodeStatus:
    """The report, from what was seen. Pure.

    Ready is about the node plugin and usrbiod: a cluster that cannot be used takes nothing from the others.
    """
    generation, old = node.metadata.generation, node.status.conditions
    if daemon.healthy:
        ready = condition(old, "Ready", True, "Serving", f"serves {len(clusters)} clusters", generation, at)
    else:
        ready = condition(old, "Ready", False, "DaemonDown", daemon.message, generation, at)
    failed = [cluster for cluster in clusters if not cluster.ready]
    reasons = {cluster.reason for cluster in failed}
    reason = (reasons.pop() if len(reasons) == 1 else "ClustersNotReady") if failed else "AllReady"
    message = "; ".join(f"{one.namespace}/{one.name}: {one.message}" for one in failed)
    all_ready = condition(old, "ClustersReady", not failed, reason, message, generation, at)
    return StorageNodeStatus(
        observed_generation=generation,
        conditions=[ready, all_ready, _mounts(node, daemon, at), _storage(node, daemon, at), *about_scratch],
        driver_version=kube3fs_csi.__version__,
        daemon=daemon_status(daemon),
        clusters=clusters,
        rdma=rdma,
    )


def _mounts(node: StorageNode, daemon: DaemonState, at: datetime.datetime) -> Condition:
    """Whether usrbiod has taken over every mount that a predecessor served."""
    if not daemon.unserved:
        reason, message = "AllServed", "usrbiod serves every mount that it should"
    else:
        name = min(daemon.unserved)
        message = f"mounts without a server: {len(daemon.unserved)}; {name}: {daemon.unserved[name]}"
        reason = "SessionsLost"
    holds, generation = reason == "AllServed", node.metadata.generation
    return condition(node.status.conditions, "MountsServed", holds, reason, message, generation, at)


def _storage(node: StorageNode, daemon: DaemonState, at: datetime.datetime) -> Condition:
    """Whether the storage below every mount answers. Other mounts are served all the same."""
    hung = ", ".join(daemon.hung[:_NAMED]) + (", ..." if len(daemon.hung) > _NAMED else "")
    reason, message = "Answers", "no request waits for long"
    if daemon.hung:
        reason = "RequestsHang"
        message = f"requests of {len(daemon.hung)} sessions of usrbiod have waited for seconds: {hung}"
    holds, generation = not daemon.hung, node.metadata.generation
    return condition(node.status.conditions, "StorageAnswers", holds, reason, message, generation, at)


def scratch_conditions(
    node: StorageNode,
    wanted: Mapping[str, Wanted],
    clusters: Mapping[str, Served],
    published: Sequence[Published],
    at: datetime.datetime,
) -> list[Condition]:
    """What the rules for scratch volumes do not hold here: older ones, and sizes. Pure."""
    generation, old = node.metadata.generation, node.status.conditions
    refused, unheld = [], []
    for name, served in sorted(clusters.items()):
        policy, volumes = wanted[name].scratch, scratch.of_cluster(published, name)
        if older := scratch.against_the_rules(policy, volumes):
            refused.append(f"{len(older)} of {name}")
        if (policy or volumes) and served.backend is not None and not served.backend.features.quota:
            unheld.append(f"{name} ({served.path})")
    allowed = condition(
        old,
        "ScratchAllowed",
        not refused,
        "OlderThanTheRules" if refused else "Allowed",
        f"stay until their pods end, though spec.scratch does not allow them now: {', '.join(refused)}"
        if refused
        else "",
        generation,
        at,
    )
    held = condition(
        old,
        "ScratchSizesEnforced",
        not unheld,
        "NoQuota" if unheld else "Quota",
        "nothing holds scratch volumes to their size, because the file system is not btrfs and has no "
        f"project quotas, in: {', '.join(unheld)}"
        if unheld
        else "",
        generation,
        at,
    )
    return [allowed, held]


def daemon_status(daemon: DaemonState) -> DaemonStatus:
    """What is known of usrbiod."""
    if daemon.hello is None:
        return DaemonStatus(version="", healthy=False, message=daemon.message)
    kernel = DaemonKernel.model_validate(daemon.hello["kernel"])
    return DaemonStatus(
        version=daemon.hello["version"], healthy=daemon.healthy, message=daemon.message, kernel=kernel
    )


def is_same(one: StorageNodeStatus, other: StorageNodeStatus) -> bool:
    """Whether a write would tell nothing new: free space that moved a little does not count."""
    return _coarse(one) == _coarse(other)


def _coarse(status: StorageNodeStatus) -> StorageNodeStatus:
    clusters = [
        cluster.model_copy(
            update={
                "available_bytes": (cluster.available_bytes or 0) // _SAME_SPACE,
                "reserved_bytes": (cluster.reserved_bytes or 0) // _SAME_SPACE,
            }
        )
        for cluster in status.clusters
    ]
    return status.model_copy(update={"clusters": clusters})
