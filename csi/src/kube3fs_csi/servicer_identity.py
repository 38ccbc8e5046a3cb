"""The CSI identity service, the same for controller and node."""

from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

import kube3fs_csi
from kube3fs_csi.api import csi_pb2, csi_pb2_grpc
from kube3fs_csi.names import DRIVER

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Service = csi_pb2.PluginCapability.Service
_Expansion = csi_pb2.PluginCapability.VolumeExpansion


class IdentityServicer(csi_pb2_grpc.IdentityServicer):
    """`ready`: whether the process can do its work now."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    async def GetPluginInfo(
        self, request: csi_pb2.GetPluginInfoRequest, context: Context
    ) -> csi_pb2.GetPluginInfoResponse:
        """Name and version."""
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version=kube3fs_csi.__version__)

    async def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """A controller, volumes bound to nodes, growth while mounted."""
        capability = csi_pb2.PluginCapability
        return csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[
                capability(service=_Service(type=_Service.CONTROLLER_SERVICE)),
                capability(service=_Service(type=_Service.VOLUME_ACCESSIBILITY_CONSTRAINTS)),
                capability(volume_expansion=_Expansion(type=_Expansion.ONLINE)),
            ]
        )

    async def Probe(self, request: csi_pb2.ProbeRequest, context: Context) -> csi_pb2.ProbeResponse:
        """On a node the truth about usrbiod: without it nothing can be mounted."""
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._ready()))
