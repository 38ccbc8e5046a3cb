"""The status of a StorageCluster. Pure: (cluster, world, what was tried) in, status out."""

import datetime
from collections.abc import Collection
from dataclasses import dataclass, field

from kube3fs_crds import ClusterNodes, ClusterSummary, NodeClusterStatus, StorageCluster, StorageClusterStatus
from kube3fs_crds.base import MOST_BYTES
from kube3fs_operator import claims, render
from kube3fs_operator.conditions import Draft, count, settle, some, truth
from kube3fs_operator.health import WAITING, NodeHealth, examine
from kube3fs_operator.placement import embedded
from kube3fs_operator.views import ClassKey, ClusterKey, VolumeView, World

MIB = 1 << 20


@dataclass(frozen=True)
class Attempt:
    """What the reconciler found out while it acted, which the world does not show."""

    apply_error: str = ""
    """The API server's words when a class could not be written."""
    unclaimed: Collection[str] = field(default_factory=frozenset)
    """Volumes that no PersistentVolume refers to; looked up only while the cluster is being deleted."""


def status(
    cluster: StorageCluster, world: World, attempt: Attempt, now: datetime.datetime
) -> StorageClusterStatus:
    """The whole status. Equal to the last one, times included, when nothing changed."""
    nodes = examine(cluster, world)
    held = world.of_cluster(ClusterKey.of(cluster))
    serving = [node for node in nodes if node.ready]
    capacity = sum(node.figures.capacity_bytes or 0 for node in serving if node.figures)
    available = _coarse(sum(node.figures.available_bytes or 0 for node in serving if node.figures), capacity)
    unreserved = _coarse(sum(room(node.figures) for node in serving if node.figures), capacity)
    allocated = min(MOST_BYTES, sum(view.capacity_bytes for view in held))
    scratch = [node.figures for node in serving if node.figures and node.figures.scratch_volumes]
    scratch_bytes = min(MOST_BYTES, sum(seen.scratch_bytes or 0 for seen in scratch))
    scratch_volumes = sum(seen.scratch_volumes or 0 for seen in scratch)
    generation = cluster.metadata.generation or 0
    return StorageClusterStatus(
        observed_generation=generation,
        conditions=settle(
            [*_drafts(cluster, world, attempt, nodes), claims.condition(cluster, world, now)],
            cluster.status.conditions,
            generation,
            now,
        ),
        nodes=ClusterNodes(total=len(nodes), ready=len(serving)),
        capacity_bytes=capacity,
        available_bytes=available,
        unreserved_bytes=unreserved,
        allocated_bytes=allocated,
        scratch_bytes=scratch_bytes,
        scratch_volumes=scratch_volumes,
        volumes=sum(view.kind == "StorageVolume" for view in held),
        snapshots=sum(view.kind == "StorageSnapshot" for view in held),
        storage_class_name=render.class_name(cluster),
        summary=ClusterSummary(
            nodes=f"{len(serving)}/{len(nodes)}",
            capacity=human(capacity),
            available=human(unreserved),
            allocated=human(allocated + scratch_bytes),
            scratch=f"{human(scratch_bytes)} ({scratch_volumes})" if scratch_volumes else "0",
        ),
    )


def _drafts(cluster: StorageCluster, world: World, attempt: Attempt, nodes: list[NodeHealth]) -> list[Draft]:
    nodes_ready = _nodes_ready(cluster, nodes)
    capacity = _capacity_available(nodes)
    classes = _classes_ready(cluster, world, attempt, nodes)
    if cluster.metadata.deletion_timestamp is not None:
        ready = _deleting(cluster, world, attempt)
        reconciling = Draft("Reconciling", "True", "Deleting", ready.message)
        stalled = Draft("Stalled", "False", "Deleting", "")
    else:
        stalled = _stalled(nodes_ready, classes)
        ready = _ready(nodes, classes, stalled)
        reconciling = _reconciling(ready, stalled, nodes)
    return [ready, reconciling, stalled, nodes_ready, capacity, _overcommitted(cluster, nodes), classes]


def _ready(nodes: list[NodeHealth], classes: Draft, stalled: Draft) -> Draft:
    """Ready: a claim made now can be served. One sick node of many shows in NodesReady only."""
    if stalled.status == "True":
        return Draft("Ready", "False", stalled.reason, stalled.message)
    serving = [node for node in nodes if node.ready and node.selected]
    if serving and classes.status != "True":
        return Draft("Ready", "False", classes.reason, classes.message)
    if serving:
        return Draft("Ready", "True", "Serving", f"{count(len(serving), 'node')} can take volumes")
    worst = next((node for node in nodes if not node.ready), None)
    if worst is None:
        return Draft("Ready", "False", "NoNodes", "no node is chosen by spec.engine.embedded.nodeSelector")
    return Draft("Ready", "False", worst.reason, _problems(nodes))


def _reconciling(ready: Draft, stalled: Draft, nodes: list[NodeHealth]) -> Draft:
    waiting = [node.message for node in nodes if node.reason in WAITING]
    if waiting:
        return Draft("Reconciling", "True", "WaitingForNodes", some(waiting))
    if ready.status == "True" or stalled.status == "True":
        return Draft("Reconciling", "False", "Settled", "")
    return Draft("Reconciling", "True", ready.reason, ready.message)


def _stalled(nodes_ready: Draft, classes: Draft) -> Draft:
    """Stalled: nothing will change until somebody changes a spec."""
    for draft in (classes, nodes_ready):
        if draft.reason in ("StorageClassTaken", "ClassNameNotReserved", "NoNodes", "PathConflict"):
            return Draft("Stalled", "True", draft.reason, draft.message)
    return Draft("Stalled", "False", "NotStalled", "")


def _nodes_ready(cluster: StorageCluster, nodes: list[NodeHealth]) -> Draft:
    if not nodes:
        selector = embedded(cluster).node_selector
        if selector:
            labels = ",".join(f"{key}={value}" for key, value in sorted(selector.items()))
            advice = (
                f"no node has the labels {labels}: label a node, or change spec.engine.embedded.nodeSelector"
            )
        else:
            advice = "no node runs the node plugin: install the chart with csiNode enabled"
        return Draft("NodesReady", "False", "NoNodes", advice)
    sick = [node for node in nodes if not node.ready]
    if sick:
        reasons = {node.reason for node in sick}
        reason = reasons.pop() if len(reasons) == 1 else "NodesNotReady"
        return Draft("NodesReady", "False", reason, _problems(nodes))
    left = [node for node in nodes if not node.selected]
    if left and cluster.metadata.deletion_timestamp is None:
        texts = [
            f"node {node.name} is no longer chosen by the selector and still serves "
            f"{count(node.volumes, 'volume')}: choose it again, or delete the claims of those volumes"
            for node in left
        ]
        return Draft("NodesReady", "True", "ServingUnselectedNodes", some(texts))
    return Draft("NodesReady", "True", "AllReady", f"{count(len(nodes), 'node')} ready")


def _problems(nodes: list[NodeHealth]) -> str:
    sick = [node.message for node in nodes if not node.ready]
    return f"{len(nodes) - len(sick)} of {count(len(nodes), 'node')} ready: {some(sick)}"


def _capacity_available(nodes: list[NodeHealth]) -> Draft:
    serving = [node for node in nodes if node.ready and node.selected]
    full = [node for node in serving if node.full]
    if not serving:
        return Draft("CapacityAvailable", "Unknown", "NoNodeReady", "no node reports its free space")
    if not full:
        return Draft("CapacityAvailable", "True", "SpaceLeft", "")
    texts = [
        f"node {node.name}: {human(node.figures.available_bytes or 0)} of "
        f"{human(node.figures.capacity_bytes or 0)} free"
        for node in full
        if node.figures
    ]
    return Draft(
        "CapacityAvailable",
        truth(len(full) < len(serving)),
        "NodesFull",
        f"{some(texts)}: delete data or snapshots there, grow the file system, or choose more nodes",
    )


def _overcommitted(cluster: StorageCluster, nodes: list[NodeHealth]) -> Draft:
    over = [
        f"node {node.name}: {human(seen.reserved_bytes or 0)} are promised to volumes that have not used "
        f"them yet, {human(seen.available_bytes or 0)} are free"
        for node in nodes
        if (seen := node.figures) and (seen.reserved_bytes or 0) > (seen.available_bytes or 0)
    ]
    if embedded(cluster).provisioning == "Thin":
        message = "spec.engine.embedded.provisioning is Thin: writes fail when the file system is full"
        return Draft("Overcommitted", truth(bool(over)), "Thin", "; ".join([message, *over[:5]]))
    if not over:
        return Draft("Overcommitted", "False", "PromisesCovered", "")
    return Draft(
        "Overcommitted",
        "True",
        "PromisesExceedSpace",
        f"{some(over)}: no new volume is made there, and writes to those that there are may fail; delete "
        "data, volumes or snapshots of any cluster on that file system, or grow it",
    )


def room(seen: NodeClusterStatus) -> int:
    """Bytes that new volumes may have there."""
    if seen.reserved_bytes is not None:
        return max(0, (seen.available_bytes or 0) - seen.reserved_bytes)
    return seen.available_bytes or 0  # a node plugin that does not count promises


def _classes_ready(cluster: StorageCluster, world: World, attempt: Attempt, nodes: list[NodeHealth]) -> Draft:
    name = render.class_name(cluster)
    if cluster.metadata.deletion_timestamp is not None:
        return Draft("ClassesReady", "False", "Deleting", "no new volumes are made")
    taken = conflict(cluster, world)
    if taken:
        return Draft("ClassesReady", "False", "StorageClassTaken", taken)
    if not render.may_have_class(cluster, world):
        return Draft(
            "ClassesReady",
            "False",
            "ClassNameNotReserved",
            f"StorageClass {name} is not made: its name neither begins with "
            f"{cluster.metadata.namespace}. nor is it reserved for this namespace; make this cluster anew "
            "with another spec.storageClassName, or have the name added to storageClassNames of the chart",
        )
    if attempt.apply_error:
        return Draft("ClassesReady", "False", "ApplyFailed", attempt.apply_error)
    seen = {key.kind for key in world.classes if key.name == name}
    if "StorageClass" not in seen:
        can_serve = any(node.ready and node.selected for node in nodes)
        why = "is being made" if can_serve else "waits for a node that can serve"
        return Draft("ClassesReady", "False", "NotMade", f"StorageClass {name} {why}")
    if not render.has_own_name(cluster, world):
        return Draft(
            "ClassesReady",
            "True",
            "NameNotReserved",
            f"StorageClass {name} was made by an earlier version and stays; a new cluster could not have "
            "this name: reserve it by storageClassNames of the chart",
        )
    if "VolumeSnapshotClass" not in seen:
        return Draft(
            "ClassesReady",
            "True",
            "NoSnapshots",
            f"StorageClass {name} is there; no VolumeSnapshotClass, because this Kubernetes has no "
            "snapshot.storage.k8s.io/v1: install the snapshot CRDs and controller to take snapshots",
        )
    return Draft("ClassesReady", "True", "Made", f"StorageClass and VolumeSnapshotClass {name} are there")


def conflict(cluster: StorageCluster, world: World) -> str:
    """What to do about a class of our name that is not ours; empty when there is none."""
    name, key = render.class_name(cluster), ClusterKey.of(cluster)
    for kind in ("StorageClass", "VolumeSnapshotClass"):
        for body in world.classes.get(ClassKey(kind, name), ()):
            if render.owner(body) != key:
                return (
                    f"{kind} {name} was not made for this cluster: delete it, "
                    "or make this cluster anew with another spec.storageClassName"
                )
    return ""


def _deleting(cluster: StorageCluster, world: World, attempt: Attempt) -> Draft:
    held = world.of_cluster(ClusterKey.of(cluster))
    if not held:
        return Draft(
            "Ready", "False", "Deleting", "nothing is stored here any more; the rest is being removed"
        )
    used = [view for view in held if not _is_leftover(view, attempt)]
    left = [view for view in held if _is_leftover(view, attempt)]
    parts = []
    if used:
        parts.append(f"{_names(used)}: delete their claims and VolumeSnapshots")
    if left and cluster.spec.deletion_policy == "Retain":
        parts.append(
            f"{_names(left)} without PersistentVolume: kubectl delete tfv NAME "
            "deletes one with its data, spec.deletionPolicy: Delete deletes all of them"
        )
    elif left:
        parts.append(f"{_names(left)} without PersistentVolume: being deleted")
    return Draft("Ready", "False", "DeletionBlocked", f"deletion waits for {'; '.join(parts)}")


def _is_leftover(view: VolumeView, attempt: Attempt) -> bool:
    return view.kind == "StorageVolume" and view.name in attempt.unclaimed


def _names(views: list[VolumeView]) -> str:
    words = {"StorageVolume": "volume", "StorageSnapshot": "snapshot"}
    texts = []
    for kind, word in words.items():
        names = [f"{view.name} on {view.node}" for view in views if view.kind == kind]
        if names:
            texts.append(f"{count(len(names), word)} ({some(names, limit=10, separator=', ')})")
    return " and ".join(texts)


def _coarse(available: int, capacity: int) -> int:
    """Free space in steps of about a thousandth of the capacity: a few bytes more are no news."""
    step = max(MIB, 1 << max(capacity // 1024, 1).bit_length())
    return available // step * step


def human(number: int) -> str:
    """Bytes in words: 1.8Ti, 10Gi, 512Mi."""
    value, unit = float(number), ""
    for unit in ("", "Ki", "Mi", "Gi", "Ti", "Pi"):
        if value < 1024 or unit == "Pi":
            break
        value /= 1024
    return f"{value:.1f}".removesuffix(".0") + unit
