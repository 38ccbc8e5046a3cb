"""The CSI controller service: requests in, answers out; what they mean is in `service`."""

from typing import Any, TypeAlias

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import Int64Value

from kube3fs_crds import StorageSnapshot, StorageVolume
from kube3fs_csi import capabilities
from kube3fs_csi.api import csi_pb2, csi_pb2_grpc
from kube3fs_csi.controller import requests
from kube3fs_csi.controller.pages import page
from kube3fs_csi.controller.service import VolumeService
from kube3fs_csi.names import PARAMETER_CLUSTER, PARAMETER_ORDERS, TOPOLOGY_KEY, checked_id, object_name
from kube3fs_csi.serving.deadline import seconds_left
from kube3fs_csi.serving.errors import InvalidArgument
from kube3fs_csi.serving.locks import KeyLocks

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

_Rpc = csi_pb2.ControllerServiceCapability.RPC
CAPABILITIES = (
    _Rpc.CREATE_DELETE_VOLUME,
    _Rpc.LIST_VOLUMES,
    _Rpc.GET_CAPACITY,
    _Rpc.CREATE_DELETE_SNAPSHOT,
    _Rpc.LIST_SNAPSHOTS,
    _Rpc.CLONE_VOLUME,
    _Rpc.EXPAND_VOLUME,
    _Rpc.GET_VOLUME,
    _Rpc.GET_SNAPSHOT,
    _Rpc.SINGLE_NODE_MULTI_WRITER,
    # There is nothing to modify: but only who offers it can say so to a bound claim.
    _Rpc.MODIFY_VOLUME,
)


class Controller(csi_pb2_grpc.ControllerServicer):
    """See the CSI spec for what each call is."""

    def __init__(self, service: VolumeService) -> None:
        self._service = service
        self._locks = KeyLocks()

    async def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, context: Context
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """What this service offers."""
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.ControllerServiceCapability(rpc=_Rpc(type=capability)) for capability in CAPABILITIES
            ]
        )

    async def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: Context
    ) -> csi_pb2.CreateVolumeResponse:
        """Makes a volume on the node that the scheduler chose, empty or as a copy."""
        wanted = requests.wanted_volume(request)
        with self._locks.hold(f"volume {wanted.name}"):
            made = await self._service.create_volume(wanted, seconds_left(context))
        message = volume_message(made)
        if requests.takes_orders(request.parameters):
            message.volume_context[PARAMETER_ORDERS] = "true"
        return csi_pb2.CreateVolumeResponse(volume=message)

    async def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: Context
    ) -> csi_pb2.DeleteVolumeResponse:
        """Deletes a volume and its data."""
        name = checked_id(request.volume_id)
        with self._locks.hold(f"volume {name}"):
            await self._service.delete_volume(name, seconds_left(context))
        return csi_pb2.DeleteVolumeResponse()

    async def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: Context
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirms capabilities that are offered, or says why not."""
        name = checked_id(request.volume_id)
        if not request.volume_capabilities:
            capabilities.check(())
        self._service.volume(name)
        try:
            capabilities.check(request.volume_capabilities)
            if request.parameters:
                requests.cluster_of(dict(request.parameters))
        except InvalidArgument as error:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=str(error))
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    async def ListVolumes(
        self, request: csi_pb2.ListVolumesRequest, context: Context
    ) -> csi_pb2.ListVolumesResponse:
        """Volumes by name."""
        found, token = page(self._service.volumes.items, request.max_entries, request.starting_token)
        entries = [csi_pb2.ListVolumesResponse.Entry(volume=volume_message(volume)) for volume in found]
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=token)

    async def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, context: Context
    ) -> csi_pb2.ControllerGetVolumeResponse:
        """One volume."""
        volume = self._service.volume(checked_id(request.volume_id))
        status = csi_pb2.ControllerGetVolumeResponse.VolumeStatus()
        return csi_pb2.ControllerGetVolumeResponse(volume=volume_message(volume), status=status)

    async def GetCapacity(
        self, request: csi_pb2.GetCapacityRequest, context: Context
    ) -> csi_pb2.GetCapacityResponse:
        """What new volumes may have, in all and at most for one. Nothing for what is not offered."""
        try:
            if request.volume_capabilities:
                capabilities.check(request.volume_capabilities)
        except InvalidArgument:
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        parameters = dict(request.parameters)
        cluster = requests.cluster_of(parameters) if PARAMETER_CLUSTER in parameters else None
        key = (cluster.namespace, cluster.name) if cluster else None
        segments = request.accessible_topology.segments
        rooms = self._service.rooms(key, [segments[TOPOLOGY_KEY]] if TOPOLOGY_KEY in segments else [])
        return csi_pb2.GetCapacityResponse(
            available_capacity=sum(rooms), maximum_volume_size=Int64Value(value=max(rooms, default=0))
        )

    async def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: Context
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Has the volume grow, while it is used or not. Its node does all of it."""
        name = checked_id(request.volume_id)
        if not request.HasField("capacity_range"):
            raise InvalidArgument("capacity_range is missing; ask for the new size")
        if request.HasField("volume_capability"):
            capabilities.check_one(request.volume_capability)
        required, limit = requests.capacity(request.capacity_range)
        with self._locks.hold(f"volume {name}"):
            size = await self._service.expand(name, required, limit, seconds_left(context))
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=False)

    async def ControllerModifyVolume(
        self, request: csi_pb2.ControllerModifyVolumeRequest, context: Context
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        """Refuses every parameter of a VolumeAttributesClass, in words."""
        self._service.volume(checked_id(request.volume_id))
        requests.check_mutable_parameters(request.mutable_parameters)
        return csi_pb2.ControllerModifyVolumeResponse()

    async def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, context: Context
    ) -> csi_pb2.CreateSnapshotResponse:
        """Takes a snapshot on the volume's node."""
        name, volume = object_name(request.name), checked_id(request.source_volume_id)
        requests.check_snapshot_parameters(dict(request.parameters))
        with self._locks.hold(f"snapshot {name}"):
            content = requests.content_of(request.parameters)
            taken = await self._service.create_snapshot(name, volume, content, seconds_left(context))
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshot_message(taken))

    async def DeleteSnapshot(
        self, request: csi_pb2.DeleteSnapshotRequest, context: Context
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Deletes a snapshot. Volumes made from it are not touched."""
        name = checked_id(request.snapshot_id, "snapshot")
        with self._locks.hold(f"snapshot {name}"):
            await self._service.delete_snapshot(name, seconds_left(context))
        return csi_pb2.DeleteSnapshotResponse()

    async def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, context: Context
    ) -> csi_pb2.ListSnapshotsResponse:
        """Snapshots by name: one, those of one volume, or all."""
        chosen = {
            name: snapshot
            for name, snapshot in self._service.snapshots.items.items()
            if request.snapshot_id in ("", name)
            and request.source_volume_id in ("", snapshot.spec.volume_name)
            and snapshot.status.creation_time is not None
        }
        found, token = page(chosen, request.max_entries, request.starting_token)
        entries = [csi_pb2.ListSnapshotsResponse.Entry(snapshot=snapshot_message(one)) for one in found]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=token)

    async def GetSnapshot(
        self, request: csi_pb2.GetSnapshotRequest, context: Context
    ) -> csi_pb2.GetSnapshotResponse:
        """One snapshot."""
        found = self._service.snapshot(checked_id(request.snapshot_id, "snapshot"))
        return csi_pb2.GetSnapshotResponse(snapshot=snapshot_message(found))


def volume_message(volume: StorageVolume) -> csi_pb2.Volume:
    """A StorageVolume as CSI has it."""
    spec = volume.spec
    message = csi_pb2.Volume(
        volume_id=volume.metadata.name,
        capacity_bytes=volume.status.capacity_bytes or spec.capacity_bytes,
        volume_context={PARAMETER_CLUSTER: str(spec.cluster_ref)},
        accessible_topology=[csi_pb2.Topology(segments={TOPOLOGY_KEY: spec.node_name})],
    )
    if spec.source and spec.source.snapshot:
        message.content_source.snapshot.snapshot_id = spec.source.snapshot
    elif spec.source and spec.source.volume:
        message.content_source.volume.volume_id = spec.source.volume
    return message


def snapshot_message(snapshot: StorageSnapshot) -> csi_pb2.Snapshot:
    """A StorageSnapshot as CSI has it."""
    created = Timestamp()
    if snapshot.status.creation_time is not None:
        created.FromDatetime(snapshot.status.creation_time)
    return csi_pb2.Snapshot(
        snapshot_id=snapshot.metadata.name,
        source_volume_id=snapshot.spec.volume_name,
        size_bytes=snapshot.status.size_bytes or 0,
        creation_time=created,
        ready_to_use=snapshot.status.ready_to_use,
    )
