"""Registers the node plugin with the kubelet (k8s.io/kubelet pluginregistration/v1): no sidecar needed."""

import asyncio
import logging
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from kube3fs_csi.api import pluginregistration_pb2 as pb
from kube3fs_csi.api import pluginregistration_pb2_grpc
from kube3fs_csi.names import DRIVER

log = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Registration(pluginregistration_pb2_grpc.RegistrationServicer):
    """Tells the kubelet, which watches the folder of this service's socket, where the driver is."""

    def __init__(self, endpoint: Path) -> None:
        self._endpoint = endpoint
        self.registered = asyncio.Event()

    async def GetInfo(self, request: pb.InfoRequest, context: Context) -> pb.PluginInfo:
        """Where the CSI services are."""
        return pb.PluginInfo(
            type="CSIPlugin", name=DRIVER, endpoint=str(self._endpoint), supported_versions=["1.0.0"]
        )

    async def NotifyRegistrationStatus(
        self, request: pb.RegistrationStatus, context: Context
    ) -> pb.RegistrationStatusResponse:
        """The kubelet says how it went."""
        if request.plugin_registered:
            log.info("registered with the kubelet")
            self.registered.set()
        else:
            log.error("the kubelet refused the driver: %s", request.error)
            self.registered.clear()
        return pb.RegistrationStatusResponse()
