"""What the agent writes into the status of volumes and snapshots. Pure functions."""

import datetime
from collections.abc import Sequence

from kube3fs_crds import (
    MAX_USERS,
    CallError,
    StorageSnapshot,
    StorageSnapshotStatus,
    StorageVolume,
    StorageVolumeStatus,
    VolumeProgress,
)
from kube3fs_csi.agent.conditions import condition, in_words
from kube3fs_csi.backends.base import Backend, DataMissing, Snapshot
from kube3fs_csi.serving import machine
from kube3fs_csi.serving.errors import CsiError


def call_error(what: str, error: Exception) -> CallError:
    """What the waiting CSI call answers, when work on `what` failed."""
    refused = machine.refusal(what, error) if isinstance(error, OSError) else error
    code = refused.code.name if isinstance(refused, CsiError) else "INTERNAL"
    return CallError(code=code, message=str(refused))


def volume_ready(
    volume: StorageVolume, backend: Backend, capacity: int, users: Sequence[str], now: datetime.datetime
) -> StorageVolumeStatus:
    """The volume is as its spec wants it."""
    old, generation = volume.status.conditions, volume.metadata.generation
    enforced = backend.features.quota
    how = (
        "the file system holds the volume to its size"
        if enforced
        else f"nothing holds the volume to its size: {backend.root} is not btrfs and has no project quotas"
    )
    return StorageVolumeStatus(
        observed_generation=generation,
        conditions=[
            condition(old, "Ready", True, "Made", f"the volume is at {backend.root}", generation, now),
            condition(
                old, "CapacityEnforced", enforced, "Quota" if enforced else "NoQuota", how, generation, now
            ),
        ],
        capacity_bytes=capacity,
        size=in_words(capacity),
        backend=backend.name,
        used_by=list(users[:MAX_USERS]),
    )


def volume_copying(
    volume: StorageVolume, done: int, total: int, now: datetime.datetime
) -> StorageVolumeStatus:
    """The volume is being filled."""
    message = f"{in_words(done)} of {in_words(total)} copied"
    generation = volume.metadata.generation
    ready = condition(volume.status.conditions, "Ready", False, "Copying", message, generation, now)
    # observed_generation stays: the waiting call goes on waiting.
    return volume.status.model_copy(
        update={
            "conditions": [ready],
            "progress": VolumeProgress(done_bytes=done, total_bytes=total),
            "error": None,
        }
    )


def volume_failed(
    volume: StorageVolume, error: Exception, users: Sequence[str], now: datetime.datetime
) -> StorageVolumeStatus:
    """The last attempt failed. A volume that was ready still is, at its old size."""
    generation, old = volume.metadata.generation, volume.status.conditions
    made = volume.status.capacity_bytes is not None
    reason = "NotGrown" if made else "NotMade"
    if isinstance(error, DataMissing):
        made, reason = False, "DataMissing"
    if volume.metadata.deletion_timestamp:
        made, reason = False, "NotDeleted"
    told = call_error(f"making or deleting volume {volume.metadata.name}", error)
    ready = condition(old, "Ready", made, reason, told.message, generation, now)
    others = [found for found in old if found.type != "Ready"]
    return volume.status.model_copy(
        update={
            "observed_generation": generation,
            "conditions": [ready, *others],
            "used_by": list(users[:MAX_USERS]),
            "error": told,
            "progress": None,
        }
    )


def snapshot_ready(
    snapshot: StorageSnapshot, taken: Snapshot, now: datetime.datetime
) -> StorageSnapshotStatus:
    """The snapshot can be restored."""
    generation = snapshot.metadata.generation
    ready = condition(
        snapshot.status.conditions, "Ready", True, "Taken", "the snapshot is whole", generation, now
    )
    return StorageSnapshotStatus(
        observed_generation=generation,
        conditions=[ready],
        ready_to_use=True,
        creation_time=datetime.datetime.fromtimestamp(taken.created, datetime.UTC).replace(microsecond=0),
        size_bytes=taken.size,
    )


def snapshot_failed(
    snapshot: StorageSnapshot, error: Exception, now: datetime.datetime
) -> StorageSnapshotStatus:
    """The last attempt failed."""
    generation = snapshot.metadata.generation
    reason = "NotDeleted" if snapshot.metadata.deletion_timestamp else "NotTaken"
    if isinstance(error, DataMissing):
        reason = "DataMissing"
    told = call_error(f"making or deleting snapshot {snapshot.metadata.name}", error)
    ready = condition(snapshot.status.conditions, "Ready", False, reason, told.message, generation, now)
    return snapshot.status.model_copy(
        update={"observed_generation": generation, "conditions": [ready], "error": told}
    )
