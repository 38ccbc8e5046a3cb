"""The CSI node service."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from kube3fs_csi.api import csi_pb2, csi_pb2_grpc
from kube3fs_csi.backends.base import Usage
from kube3fs_csi.names import MAX_PATH_BYTES, TOPOLOGY_KEY, checked_id, checked_path
from kube3fs_csi.node.publisher import Publisher, place
from kube3fs_csi.node.sessions import Health
from kube3fs_csi.node.state import Pod, Published
from kube3fs_csi.plugin import publish_request
from kube3fs_csi.plugin.publish_request import Limits
from kube3fs_csi.serving.deadline import seconds_left
from kube3fs_csi.serving.errors import DeadlineNear, InvalidArgument, NotFound, OutOfRange, Precondition

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_Rpc = csi_pb2.NodeServiceCapability.RPC
CAPABILITIES = (
    _Rpc.GET_VOLUME_STATS,
    _Rpc.EXPAND_VOLUME,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    _Rpc.VOLUME_MOUNT_GROUP,
    _Rpc.GET_VOLUME_HEALTH,
    _Rpc.GET_STORAGE_HEALTH,
)
_HEALTH = {
    Health.WAITING: (csi_pb2.DEGRADED, "DaemonAway"),
    Health.DEAD: (csi_pb2.INACCESSIBLE, "MountDead"),
}


class Node(csi_pb2_grpc.NodeServicer):
    """See the CSI spec for what each call is."""

    def __init__(self, node_id: str, publisher: Publisher, limits: Limits, max_volumes: int) -> None:
        self._node_id = node_id
        self._publisher = publisher
        self._limits = limits
        self._max_volumes = max_volumes
        self.has_user_namespace: Callable[[Pod], Awaitable[bool]] = _unknown
        """Whether a pod has users of its own. The kubelet does not tell."""
        self._running: set[asyncio.Task[Any]] = set()

    async def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """What this service offers."""
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.NodeServiceCapability(rpc=_Rpc(type=capability)) for capability in CAPABILITIES
            ]
        )

    async def NodeGetInfo(
        self, request: csi_pb2.NodeGetInfoRequest, context: Context
    ) -> csi_pb2.NodeGetInfoResponse:
        """The node's name is its id and its topology."""
        topology = csi_pb2.Topology(segments={TOPOLOGY_KEY: self._node_id})
        return csi_pb2.NodeGetInfoResponse(
            node_id=self._node_id, max_volumes_per_node=self._max_volumes, accessible_topology=topology
        )

    async def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: Context
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Makes a volume appear in a pod."""
        want = publish_request.parse(request, self._limits)
        if want.is_mount_of_ours:
            have = self._publisher.store.get(want.target)
            mapped = have.user_namespace if have else await self.has_user_namespace(want.pod)
            want = want.model_copy(update={"user_namespace": mapped})
        what = place(want.volume_id, want.target)
        await self._to_the_end(what, lambda: self._publisher.publish(want), seconds_left(context))
        return csi_pb2.NodePublishVolumeResponse()

    async def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: Context
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Takes a volume away from a pod."""
        volume_id = checked_id(request.volume_id)
        target = checked_path(request.target_path, self._limits.kubelet_dir, "target_path")
        what = place(volume_id, target)
        await self._to_the_end(
            what, lambda: self._publisher.unpublish(volume_id, target), seconds_left(context)
        )
        return csi_pb2.NodeUnpublishVolumeResponse()

    async def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, context: Context
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Bytes and inodes. Asks the data root, never the mount, which may hang."""
        record = self._published(request.volume_id, request.volume_path)
        if record.is_mount_of_ours:
            usage = _usages(await self._measured(record, seconds_left(context)))
        else:
            lane = self._publisher.lanes.of("", "call")
            usage = await lane.run(str(record.target), lambda: _usages_of_mount(record.target))
        return csi_pb2.NodeGetVolumeStatsResponse(usage=usage)

    async def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, context: Context
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Confirms that a mounted volume has the size asked for: the agent let it grow."""
        record = self._published(request.volume_id, request.volume_path)
        if not record.is_mount_of_ours:
            raise InvalidArgument(f"volume {record.volume_id} is of kind {record.kind}, which cannot grow")
        required, limit = request.capacity_range.required_bytes, request.capacity_range.limit_bytes
        if required < 0 or limit < 0:
            raise InvalidArgument("a capacity is negative; ask for more than 0 bytes")
        have = await self._publisher.capacity(record)
        if 0 < limit < have:
            raise OutOfRange(f"volume {record.volume_id} has {have} bytes and cannot shrink to {limit}")
        if required > have:
            raise Precondition(f"volume {record.volume_id} has {have} bytes; ControllerExpandVolume grows it")
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=have)

    async def NodeGetVolumeHealth(
        self, request: csi_pb2.NodeGetVolumeHealthRequest, context: Context
    ) -> csi_pb2.NodeGetVolumeHealthResponse:
        """Whether somebody serves the mount. No entry: it is well."""
        volume_id, path = checked_id(request.volume_id), request.volume_publish_path
        records = [
            record
            for record in self._publisher.store.all()
            if record.volume_id == volume_id and path in ("", str(record.target))
        ]
        if not records:
            raise NotFound(f"volume {volume_id} is not published at {path or 'any target'}")
        message = csi_pb2.VolumeHealth(volume_id=volume_id)
        ill = {(self._publisher.health(one), self._publisher.why(one)) for one in records}
        for health, why in sorted(ill, key=str):
            if health in _HEALTH:
                status, reason = _HEALTH[health]
                message.health_statuses.add(status=status, reason=reason, message=why)
        return csi_pb2.NodeGetVolumeHealthResponse(volume_health=message)

    async def NodeGetStorageHealth(
        self, request: csi_pb2.NodeGetStorageHealthRequest, context: Context
    ) -> csi_pb2.NodeGetStorageHealthResponse:
        """The daemon, and the data root of each cluster. No entry: all is well."""
        response = csi_pb2.NodeGetStorageHealthResponse()
        daemon = self._publisher.sessions.daemon
        if not daemon.healthy:
            response.backend_health.add(
                status=csi_pb2.STORAGE_DEGRADED, reason="DaemonAway", message=daemon.message
            )
        for name, served in self._publisher.clusters.all().items():
            if not served.ready:
                response.backend_health.add(
                    status=csi_pb2.STORAGE_UNREACHABLE,
                    reason=served.reason,
                    message=f"StorageCluster {name}: {served.message}",
                )
        return response

    async def _measured(self, record: Published, seconds: float) -> Usage:
        try:
            async with asyncio.timeout(seconds):
                return await self._publisher.measure(record)
        except TimeoutError as error:
            raise DeadlineNear(
                f"volume {record.volume_id} is still being measured; ask again later"
            ) from error

    def _published(self, volume_id: str, path: str) -> Published:
        checked_id(volume_id)
        if not path:
            raise InvalidArgument("volume_path is empty; set it to the target_path of the volume")
        record = self._publisher.store.get(Path(path))
        if record is None or record.volume_id != volume_id:
            raise NotFound(f"volume {volume_id} is not published at {path[:MAX_PATH_BYTES]}")
        return record

    async def _to_the_end(
        self, what: str, work: Callable[[], Coroutine[Any, Any, None]], seconds: float
    ) -> None:
        """Does `work` under its lock, even if the caller gives up: half a mount helps nobody.

        After `seconds` the caller is told to ask again.
        """

        async def locked() -> None:
            with self._publisher.locks.hold(what):
                await work()

        task = asyncio.create_task(locked())
        self._running.add(task)
        task.add_done_callback(self._done)
        await asyncio.wait({task}, timeout=seconds)
        if not task.done():
            raise DeadlineNear(
                f"{what} waits for its storage or for usrbiod; the work goes on, and the same call finds its "
                "result. `kubectl get storagenode` says what does not answer"
            )
        task.result()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("ended with %s", task.exception())


async def _unknown(_pod: Pod) -> bool:
    return False


def _usages(used: Usage) -> list[csi_pb2.VolumeUsage]:
    inodes = _usage(csi_pb2.VolumeUsage.INODES, used.inodes_total, used.inodes)
    return [_usage(csi_pb2.VolumeUsage.BYTES, used.total, used.used), *([inodes] if used.inodes else [])]


def _usages_of_mount(target: Path) -> list[csi_pb2.VolumeUsage]:
    """Of a mount that cannot hang."""
    stat = os.statvfs(target)
    total = stat.f_blocks * stat.f_frsize
    return [
        _usage(csi_pb2.VolumeUsage.BYTES, total, total - stat.f_bfree * stat.f_frsize),
        _usage(csi_pb2.VolumeUsage.INODES, stat.f_files, stat.f_files - stat.f_ffree),
    ]


def _usage(unit: csi_pb2.VolumeUsage.Unit, total: int, used: int) -> csi_pb2.VolumeUsage:
    return csi_pb2.VolumeUsage(unit=unit, total=total, used=used, available=max(0, total - used))
