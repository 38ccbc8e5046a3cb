"""The kubelet device plugin for `kube3fs.io/rdma` (k8s.io/kubelet deviceplugin/v1beta1)."""

import asyncio
import functools
import logging
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from kube3fs_csi.api import deviceplugin_pb2 as pb
from kube3fs_csi.api import deviceplugin_pb2_grpc
from kube3fs_csi.devices.discovery import Offered, prefer, share_ids
from kube3fs_csi.names import RESOURCE_RDMA
from kube3fs_csi.serving.errors import NotFound
from kube3fs_csi.serving.server import inode, is_listening, serving

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SOCKET = f"kube3fs-rdma.{os.getpid()}.sock"
"""One name for each process: the kubelet refuses a second plugin at a socket that it is connected to."""
_SOCKETS = "kube3fs-rdma.*.sock"
_KUBELET = "kubelet.sock"
_VERSION = "v1beta1"
_POLL_SECONDS = 1.0
_REGISTER_SECONDS = 10.0


class RdmaPlugin(deviceplugin_pb2_grpc.DevicePluginServicer):
    """Offers `shares` of each device. For one event loop."""

    def __init__(self, shares: int = 1) -> None:
        self._shares = shares
        self._devices: list[Offered] = []
        self._changed = asyncio.Condition()

    async def set(self, devices: Sequence[Offered]) -> None:
        """Offers these devices from now on."""
        async with self._changed:
            if self._devices != list(devices):
                self._devices = list(devices)
                self._changed.notify_all()

    def listed(self) -> pb.ListAndWatchResponse:
        """Every share, with its health and NUMA node."""
        shares = []
        for device in self._devices:
            nodes = [] if device.numa_node is None else [pb.NUMANode(ID=device.numa_node)]
            health = "Healthy" if device.healthy else "Unhealthy"
            shares += [
                pb.Device(ID=share, health=health, topology=pb.TopologyInfo(nodes=nodes))
                for share in share_ids(device.name, self._shares)
            ]
        return pb.ListAndWatchResponse(devices=shares)

    async def GetDevicePluginOptions(self, request: pb.Empty, context: Context) -> pb.DevicePluginOptions:
        """Asks for GetPreferredAllocation."""
        return pb.DevicePluginOptions(get_preferred_allocation_available=True)

    async def ListAndWatch(
        self, request: pb.Empty, context: Context
    ) -> AsyncIterator[pb.ListAndWatchResponse]:
        """The shares, and again whenever they change."""
        sent = self.listed()
        yield sent
        while True:
            async with self._changed:
                await self._changed.wait_for(functools.partial(self._differs, sent))
                sent = self.listed()
            yield sent

    async def GetPreferredAllocation(
        self, request: pb.PreferredAllocationRequest, context: Context
    ) -> pb.PreferredAllocationResponse:
        """Different devices of one NUMA node, where that can be."""
        return pb.PreferredAllocationResponse(
            container_responses=[
                pb.ContainerPreferredAllocationResponse(
                    deviceIDs=prefer(
                        list(one.available_deviceIDs),
                        list(one.must_include_deviceIDs),
                        one.allocation_size,
                        self._devices,
                        self._shares,
                    )
                )
                for one in request.container_requests
            ]
        )

    async def Allocate(self, request: pb.AllocateRequest, context: Context) -> pb.AllocateResponse:
        """CDI names of the devices; the container runtime does the rest."""
        responses = []
        for one in request.container_requests:
            names = dict.fromkeys(self._owner(share) for share in one.devices_ids)
            devices = [pb.CDIDevice(name=f"{RESOURCE_RDMA}={name}") for name in names]
            responses.append(pb.ContainerAllocateResponse(cdi_devices=devices))
        return pb.AllocateResponse(container_responses=responses)

    def _differs(self, sent: pb.ListAndWatchResponse) -> bool:
        return self.listed() != sent

    def _owner(self, share: str) -> str:
        for device in self._devices:
            if share in share_ids(device.name, self._shares):
                return device.name
        raise NotFound(f"RDMA device {share} is gone; see the status of the StorageNode")


async def run(plugin: RdmaPlugin, folder: Path) -> None:
    """Serves `plugin` in the kubelet's folder of device plugins, and registers with each kubelet that starts.

    A kubelet that starts removes the sockets in its folder: then a new one is made.
    """
    for leftover in folder.glob(_SOCKETS):
        if not is_listening(leftover):
            leftover.unlink(missing_ok=True)
    while True:
        async with serving(
            folder / SOCKET,
            lambda server: deviceplugin_pb2_grpc.add_DevicePluginServicer_to_server(plugin, server),
        ):
            registered = 0
            while (folder / SOCKET).exists():
                kubelet = inode(folder / _KUBELET)
                if kubelet not in (0, registered) and await _register(folder):
                    registered = kubelet
                await asyncio.sleep(_POLL_SECONDS)


async def _register(folder: Path) -> bool:
    """Tells the kubelet of us; whether it listened."""
    async with grpc.aio.insecure_channel(f"unix://{folder / _KUBELET}") as channel:
        stub: Any = deviceplugin_pb2_grpc.RegistrationStub(channel)
        options = pb.DevicePluginOptions(get_preferred_allocation_available=True)
        request = pb.RegisterRequest(
            version=_VERSION, endpoint=SOCKET, resource_name=RESOURCE_RDMA, options=options
        )
        try:
            await stub.Register(request, timeout=_REGISTER_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.info("the kubelet takes no device plugins yet: %s", error.details())
            return False
    log.info("registered %s with the kubelet", RESOURCE_RDMA)
    return True
