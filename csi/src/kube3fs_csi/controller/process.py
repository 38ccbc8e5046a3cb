"""The controller process: caches, and the CSI socket that the sidecars call."""

import asyncio

from kube3fs_crds import StorageCluster, StorageNode, StorageSnapshot, StorageVolume
from kube3fs_csi.api import csi_pb2_grpc
from kube3fs_csi.controller.injection import InjectionEvents
from kube3fs_csi.controller.service import VolumeService
from kube3fs_csi.controller.servicer import Controller
from kube3fs_csi.controller.wanted import Sweeper
from kube3fs_csi.kube.api import connected
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.servicer_identity import IdentityServicer
from kube3fs_csi.serving import health
from kube3fs_csi.serving.server import serving
from kube3fs_csi.settings import ControllerSettings


async def run(settings: ControllerSettings) -> None:
    """Serves until cancelled."""
    async with connected(settings.kubeconfig) as api, asyncio.TaskGroup() as group:
        objects = Objects(api, "kube3fs-csi-controller")
        volumes = Informer(objects, StorageVolume)
        snapshots = Informer(objects, StorageSnapshot)
        nodes = Informer(objects, StorageNode)
        clusters = Informer(objects, StorageCluster)
        caches = (volumes, snapshots, nodes, clusters)
        for cache in caches:
            group.create_task(cache.run())

        def ready() -> str:
            return "" if all(cache.synced.is_set() for cache in caches) else "the caches are not filled yet"

        group.create_task(health.serve(settings.health_port, ready))
        for cache in caches:
            await cache.synced.wait()
        group.create_task(InjectionEvents(api).run())
        group.create_task(Sweeper(api, objects, volumes, snapshots).run())
        controller = Controller(VolumeService(api, objects, volumes, snapshots, nodes, clusters))
        async with serving(
            settings.endpoint,
            lambda server: csi_pb2_grpc.add_ControllerServicer_to_server(controller, server),
            lambda server: csi_pb2_grpc.add_IdentityServicer_to_server(
                IdentityServicer(lambda: not ready()), server
            ),
        ):
            await asyncio.Event().wait()
