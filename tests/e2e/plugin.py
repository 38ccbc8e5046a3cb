"""A CSI node driver and a device plugin, as small as the kubelet takes them. Runs in a privileged pod.

Its driver mounts a tmpfs; its device is a CDI name. PYTHONPATH holds stubs made from the pinned .proto files.
"""

import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from deviceplugin import api_pb2 as device
from deviceplugin import api_pb2_grpc as device_grpc
from pluginregistration import api_pb2 as registration
from pluginregistration import api_pb2_grpc as registration_grpc

from csi import csi_pb2, csi_pb2_grpc

DRIVER = "shm.e2e.kube3fs.io"
RESOURCE = "e2e.kube3fs.io/device"
SIZE = "16m"
KUBELET = Path("/var/lib/kubelet")
CDI = Path("/var/run/cdi")


class Identity(csi_pb2_grpc.IdentityServicer):  # type: ignore[misc]
    def GetPluginInfo(self, request: Any, context: Any) -> Any:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER, vendor_version="1")

    def GetPluginCapabilities(self, request: Any, context: Any) -> Any:
        return csi_pb2.GetPluginCapabilitiesResponse()

    def Probe(self, request: Any, context: Any) -> Any:
        return csi_pb2.ProbeResponse()


class Node(csi_pb2_grpc.NodeServicer):  # type: ignore[misc]
    def NodeGetInfo(self, request: Any, context: Any) -> Any:
        return csi_pb2.NodeGetInfoResponse(node_id="node")

    def NodeGetCapabilities(self, request: Any, context: Any) -> Any:
        return csi_pb2.NodeGetCapabilitiesResponse()

    def NodePublishVolume(self, request: Any, context: Any) -> Any:
        target = Path(request.target_path)
        target.mkdir(parents=True, exist_ok=True)
        if not target.is_mount():
            options = f"size={SIZE},mode=1777"
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "e2e-shm", target], check=True)
            (target / "pod").write_text(request.volume_context["csi.storage.k8s.io/pod.name"])
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(self, request: Any, context: Any) -> Any:
        target = Path(request.target_path)
        if target.is_mount():
            subprocess.run(["umount", target], check=True)
        if target.is_dir():
            target.rmdir()
        return csi_pb2.NodeUnpublishVolumeResponse()


class Registration(registration_grpc.RegistrationServicer):  # type: ignore[misc]
    """How a driver answers the kubelet that found its socket."""

    def GetInfo(self, request: Any, context: Any) -> Any:
        endpoint = str(KUBELET / "plugins" / DRIVER / "csi.sock")
        return registration.PluginInfo(
            type="CSIPlugin", name=DRIVER, endpoint=endpoint, supported_versions=["1.0.0"]
        )

    def NotifyRegistrationStatus(self, request: Any, context: Any) -> Any:
        print("registered:", request.plugin_registered, request.error, flush=True)
        return registration.RegistrationStatusResponse()


class Devices(device_grpc.DevicePluginServicer):  # type: ignore[misc]
    def GetDevicePluginOptions(self, request: Any, context: Any) -> Any:
        return device.DevicePluginOptions()

    def ListAndWatch(self, request: Any, context: Any) -> Any:
        yield device.ListAndWatchResponse(devices=[device.Device(ID="one", health="Healthy")])
        over = threading.Event()
        context.add_callback(over.set)
        over.wait()

    def Allocate(self, request: Any, context: Any) -> Any:
        names = [device.CDIDevice(name=f"{RESOURCE}=one")]
        answers = [device.ContainerAllocateResponse(cdi_devices=names) for _ in request.container_requests]
        return device.AllocateResponse(container_responses=answers)


def serve(path: Path, **servicers: tuple[Any, Any]) -> grpc.Server:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    server = grpc.server(ThreadPoolExecutor(8))
    for add, servicer in servicers.values():
        add(servicer, server)
    server.add_insecure_port(f"unix://{path}")
    server.start()
    return server


def main() -> None:
    edits = {
        "env": ["E2E_DEVICE=one"],
        "deviceNodes": [{"path": "/dev/e2e", "hostPath": "/dev/null"}],
    }
    spec = {
        "cdiVersion": "0.6.0",
        "kind": RESOURCE,
        "devices": [{"name": "one", "containerEdits": edits}],
    }
    (CDI / "e2e.json").write_text(json.dumps(spec))
    servers = [
        serve(
            KUBELET / "plugins" / DRIVER / "csi.sock",
            identity=(csi_pb2_grpc.add_IdentityServicer_to_server, Identity()),
            node=(csi_pb2_grpc.add_NodeServicer_to_server, Node()),
        ),
        serve(
            KUBELET / "plugins_registry" / f"{DRIVER}-reg.sock",
            registration=(registration_grpc.add_RegistrationServicer_to_server, Registration()),
        ),
        serve(
            KUBELET / "device-plugins" / "e2e.sock",
            devices=(device_grpc.add_DevicePluginServicer_to_server, Devices()),
        ),
    ]
    with grpc.insecure_channel(f"unix://{KUBELET}/device-plugins/kubelet.sock") as channel:
        request = device.RegisterRequest(version="v1beta1", endpoint="e2e.sock", resource_name=RESOURCE)
        device_grpc.RegistrationStub(channel).Register(request)
    print("serving", flush=True)
    for server in servers:
        server.wait_for_termination()


main()
