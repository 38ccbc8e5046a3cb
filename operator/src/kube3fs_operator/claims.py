"""Volumes that no PersistentVolume refers to, and snapshots without VolumeSnapshotContent. Pure.

Somebody may keep one on purpose (reclaim policy Retain), and a moment without is how each begins. But nobody
else shows it: its room is promised until somebody deletes it.
"""

import datetime

from kube3fs_crds import StorageCluster
from kube3fs_operator.conditions import Draft, count, some
from kube3fs_operator.views import ClusterKey, Handle, VolumeView, World

GRACE = datetime.timedelta(minutes=10)
"""As long may the making take, and the first look at what refers to it."""


def unclaimed(cluster: StorageCluster, world: World) -> list[VolumeView]:
    """Of any age."""
    held = world.of_cluster(ClusterKey.of(cluster))
    return [view for view in held if not view.deleting and not world.claims.get(Handle(view.kind, view.name))]


def overdue(cluster: StorageCluster, world: World, now: datetime.datetime) -> list[VolumeView]:
    """Those that ought to be referred to by now."""
    return [view for view in unclaimed(cluster, world) if view.created and now - view.created >= GRACE]


def next_look(cluster: StorageCluster, world: World, now: datetime.datetime) -> float | None:
    """Seconds until the next one is overdue, if one will be."""
    ages = [now - view.created for view in unclaimed(cluster, world) if view.created]
    left = [(GRACE - age).total_seconds() for age in ages if age < GRACE]
    return min(left, default=None)


def condition(cluster: StorageCluster, world: World, now: datetime.datetime) -> Draft:
    """VolumesClaimed."""
    late = overdue(cluster, world, now)
    if not late:
        return Draft("VolumesClaimed", "True", "AllClaimed", "")
    parts = []
    for kind, word, claim, short in (
        ("StorageVolume", "volume", "PersistentVolume", "tfv"),
        ("StorageSnapshot", "snapshot", "VolumeSnapshotContent", "tfss"),
    ):
        names = [f"{view.name} on {view.node}" for view in late if view.kind == kind]
        if names:
            parts.append(
                f"no {claim} refers to {count(len(names), word)} ({some(names, limit=10, separator=', ')}): "
                f"kubectl delete {short} NAME deletes one with its data"
            )
    return Draft("VolumesClaimed", "False", "Unclaimed", "; ".join(parts))
