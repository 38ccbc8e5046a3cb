"""The node process: everything of `kube3fs_csi` that runs on a node, put together."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kube3fs_crds import RdmaStatus, StorageNode, StorageSnapshot, StorageVolume
from kube3fs_csi.agent.node import NodeAgent
from kube3fs_csi.agent.queue import KeyQueue
from kube3fs_csi.agent.volumes import VolumeAgent
from kube3fs_csi.api import csi_pb2_grpc, pluginregistration_pb2_grpc
from kube3fs_csi.backends.base import Backend
from kube3fs_csi.devices import cdi, discovery, sources
from kube3fs_csi.devices.servicer import RdmaPlugin
from kube3fs_csi.devices.servicer import run as run_device_plugin
from kube3fs_csi.kube.api import connected
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.kube.pods import has_user_namespace
from kube3fs_csi.node import client_library, scratch
from kube3fs_csi.node.clusters import Clusters, Wanted
from kube3fs_csi.node.lanes import Lanes
from kube3fs_csi.node.publisher import Publisher
from kube3fs_csi.node.sessions import Sessions
from kube3fs_csi.node.shm import SharedMemory
from kube3fs_csi.node.state import Store
from kube3fs_csi.plugin.publish_request import Limits
from kube3fs_csi.plugin.servicer import Node
from kube3fs_csi.plugin.servicer_registration import Registration
from kube3fs_csi.servicer_identity import IdentityServicer
from kube3fs_csi.serving import health
from kube3fs_csi.serving.errors import CsiError
from kube3fs_csi.serving.server import inode, is_listening, serving
from kube3fs_csi.settings import NodeSettings

log = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 5.0
"""How long a start waits for the data roots: one that hangs keeps no others from being served."""
_TRASH_SECONDS = 60.0
_MEASURE_SECONDS = 5.0
"""Of each round, for volumes of which it is not known what they use."""
_RDMA_SECONDS = 10.0
_LOOK_SECONDS = 10.0


class NodeProcess:
    """The parts that everything else hangs on."""

    def __init__(self, settings: NodeSettings) -> None:
        state = settings.state_dir
        state.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.lanes = Lanes()
        self.clusters = Clusters(state / "clusters.json", settings.data_dirs, self.lanes)
        if not settings.kubernetes:
            self.clusters.set({name: Wanted(path, scratch.EVERYBODY) for name, path in settings.clusters})
        self.store = Store(state / "published")
        self.own_socket = 0
        """Inode of the CSI socket that this process serves at, as soon as it does."""
        self.sessions = Sessions(
            settings.usrbiod, lambda: self.publisher.wanted_sessions(), self.is_superseded
        )
        self.publisher = Publisher(
            self.store,
            self.sessions,
            self.clusters,
            SharedMemory(state / "shm"),
            self.lanes,
        )
        self.trash = asyncio.Event()
        """Something was deleted."""
        self.emptied: Callable[[], None] = lambda: None
        self.publisher.deleted = self.trash.set
        self.rdma_status = RdmaStatus(message="not looked for yet")
        self.rdma_plugin = RdmaPlugin(settings.rdma_shares)

    def limits(self) -> Limits:
        """What NodePublishVolume may ask for."""
        source = self.settings.client_source
        client_dir = None
        if source is not None:
            in_use = [record.source for record in self.store.all() if record.source is not None]
            client_dir = client_library.install(source, self.settings.state_dir / "client", in_use)
        return Limits(self.settings.kubelet_dir, self.settings.max_shm_bytes, client_dir)

    def users(self, volume_id: str) -> list[str]:
        """The pods of this node that have the volume, as NAMESPACE/NAME."""
        pods = {record.pod for record in self.store.all() if record.volume_id == volume_id}
        return sorted(f"{pod.namespace}/{pod.name}" if pod.name else pod.key for pod in pods)

    def is_superseded(self) -> bool:
        """Whether a newer node plugin serves at our socket."""
        return self.own_socket not in (0, inode(self.settings.endpoint))

    def not_alive(self) -> str:
        """A superseded plugin comes back if its successor is gone: the kubelet restarts it."""
        if self.is_superseded() and not is_listening(self.settings.endpoint):
            return "the node plugin that took over is gone"
        return ""

    def not_ready(self) -> str:
        """Why nothing can be mounted now, or ''."""
        return self.sessions.daemon.message


async def run(settings: NodeSettings) -> None:
    """Serves until cancelled. Mounts stay."""
    process = NodeProcess(settings)
    await process.clusters.look(_FIRST_LOOK_SECONDS)
    limits = await process.lanes.of("", "call").run("the client library", process.limits)
    node = Node(settings.node_name, process.publisher, limits, settings.max_volumes)
    identity = IdentityServicer(lambda: not process.not_ready())
    async with asyncio.TaskGroup() as group:
        group.create_task(_empty_trash(process))
        group.create_task(health.serve(settings.health_port, process.not_ready, process.not_alive))
        if settings.rdma:
            group.create_task(_watch_rdma(process))
            group.create_task(run_device_plugin(process.rdma_plugin, settings.kubelet_dir / "device-plugins"))
        if not settings.kubernetes:
            group.create_task(_keep_looking(process))
        agent = group.create_task(_run_agent(process, node)) if settings.kubernetes else None
        async with serving(
            settings.endpoint,
            lambda server: csi_pb2_grpc.add_NodeServicer_to_server(node, server),
            lambda server: csi_pb2_grpc.add_IdentityServicer_to_server(identity, server),
        ):
            process.own_socket = inode(settings.endpoint)
            # Only now, when the kubelet can reach no older plugin any more.
            group.create_task(_keep_sessions(process, agent))
            group.create_task(_tidy_up(process))
            registration = Registration(settings.endpoint)
            async with serving(
                settings.registration,
                lambda server: pluginregistration_pb2_grpc.add_RegistrationServicer_to_server(
                    registration, server
                ),
            ):
                await asyncio.Event().wait()


async def _tidy_up(process: NodeProcess) -> None:
    """What pods that come and go need not wait for."""
    await process.publisher.adopt()
    await process.publisher.learn_sizes()


async def _keep_looking(process: NodeProcess) -> None:
    """What the node agent does where there is an API server."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        await process.clusters.look(_LOOK_SECONDS)


async def _keep_sessions(process: NodeProcess, agent: asyncio.Task[None] | None) -> None:
    """Until a newer node plugin has taken over, whose agent then does what the API server asks."""
    await process.sessions.run()
    if agent is not None:
        agent.cancel()


async def _run_agent(process: NodeProcess, servicer: Node) -> None:
    """Carries out what the API server asks of this node."""
    settings = process.settings
    async with connected(settings.kubeconfig) as api, asyncio.TaskGroup() as group:
        servicer.has_user_namespace = partial(has_user_namespace, api)
        objects = Objects(api, "kube3fs-csi-node")
        mine = f"spec.nodeName={settings.node_name}"
        volumes = Informer(objects, StorageVolume, mine, lambda name: volume_queue.add(name))
        snapshots = Informer(objects, StorageSnapshot, mine, lambda name: snapshot_queue.add(name))
        nodes = Informer(
            objects, StorageNode, f"metadata.name={settings.node_name}", lambda _name: node.look()
        )
        agent = VolumeAgent(
            objects,
            volumes,
            snapshots,
            process.clusters,
            process.users,
            lambda: node.look(),
            process.publisher.grown,
            process.trash.set,
            process.lanes,
        )
        volume_queue = KeyQueue(agent.volume, agent.volume_cluster)
        snapshot_queue = KeyQueue(agent.snapshot, agent.snapshot_cluster)

        def let_go(name: str) -> None:
            agent.was_used(name)
            volume_queue.add(name)

        async def everything() -> None:
            process.trash.set()  # a cluster may be served no more
            for name in volumes.items:
                volume_queue.add(name)
            for name in snapshots.items:
                snapshot_queue.add(name)

        node = NodeAgent(
            settings.node_name,
            settings.namespace,
            objects,
            nodes,
            process.clusters,
            lambda: process.sessions.daemon,
            lambda: process.rdma_status,
            process.store.all,
            everything,
        )
        process.publisher.published = volume_queue.add
        process.publisher.unpublished = let_go
        process.emptied = node.look
        for part in (volumes, snapshots, nodes, volume_queue, snapshot_queue, node):
            group.create_task(part.run())


async def _empty_trash(process: NodeProcess) -> None:
    """Frees what was deleted, in every data root by itself, by and by."""
    emptying: dict[Path, asyncio.Task[None]] = {}
    again: set[Path] = set()

    def done(root: Path, task: asyncio.Task[None]) -> None:
        del emptying[root]
        if not task.cancelled() and task.exception() is not None:
            log.error("emptying the trash of %s met a defect", root, exc_info=task.exception())
        if root in again:
            again.discard(root)
            process.trash.set()

    def start(work: Callable[..., Coroutine[Any, Any, None]], name: str, backend: Backend) -> None:
        if backend.root in emptying:
            again.add(backend.root)
            return
        task = emptying[backend.root] = asyncio.create_task(work(process, name, backend))
        task.add_done_callback(partial(done, backend.root))

    while True:
        process.trash.clear()
        for name, served in process.clusters.all().items():
            if served.backend is not None:
                start(_empty_one, name, served.backend)
        for name, backend in process.clusters.dropped.items():
            start(_tidy_one, name, backend)
        with suppress(TimeoutError):
            async with asyncio.timeout(_TRASH_SECONDS):
                await process.trash.wait()


async def _empty_one(process: NodeProcess, cluster: str, backend: Backend) -> None:
    """The trash of one data root, which takes as long as it takes."""

    def empty() -> bool:
        more = backend.empty_trash()
        backend.measure_some(_MEASURE_SECONDS)
        return more

    what = f"the trash of {backend.root}"
    more = await process.lanes.of(cluster, "trash").run(what, empty, seconds=None)
    process.emptied()
    if more:
        process.trash.set()


async def _tidy_one(process: NodeProcess, cluster: str, backend: Backend) -> None:
    """Leaves nothing of a data root that is not served any more, if nothing is stored in it."""
    what = f"the trash of {backend.root}"
    while await process.lanes.of(cluster, "trash").run(what, backend.empty_trash, seconds=None):
        log.debug("the trash of %s takes a while", cluster)
    if not process.clusters.tidied(cluster, backend):
        return

    def remove() -> None:
        if not process.clusters.is_wanted(backend.root):  # since, and maybe by another name
            backend.remove_empty(whole=process.clusters.is_made_for(backend.root))

    # As a look at it: none is taken while its folders go.
    await process.lanes.of(cluster, "look").run(f"data root {backend.root}", remove, seconds=None)


async def _watch_rdma(process: NodeProcess) -> None:
    """Looks for RDMA devices again and again: ports go up and down, drivers are loaded late."""
    settings, devices = process.settings, process.lanes.of("", "look")
    while True:
        try:
            raw, trouble = await devices.run(
                "what RDMA devices there are", lambda: sources.read(settings.sysfs)
            )
            offered = discovery.offered(raw, settings.rdma_devices)
            await devices.run("the CDI files", partial(cdi.write, settings.cdi_dir, offered, Path("/dev")))
        except (OSError, ValueError, CsiError) as error:
            log.warning("cannot look for RDMA devices: %s", error)
        else:
            process.rdma_status = discovery.status(offered, len(raw), settings.rdma_devices, trouble)
            await process.rdma_plugin.set(offered)
        await asyncio.sleep(_RDMA_SECONDS)
