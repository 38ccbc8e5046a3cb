"""Publishes volumes at target paths, and takes them away. Every step can be repeated."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from kube3fs_csi.backends.base import Usage
from kube3fs_csi.node import mounts
from kube3fs_csi.node.clusters import Clusters
from kube3fs_csi.node.group import give_to_group
from kube3fs_csi.node.sessions import Health, Sessions, close_all
from kube3fs_csi.node.shm import SharedMemory
from kube3fs_csi.node.state import Published, Store
from kube3fs_csi.node.usrbiod import Json
from kube3fs_csi.serving.errors import AlreadyExists, CsiError, InvalidArgument, Precondition

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

WAIT_FOR_DAEMON_SECONDS = 20.0
_CLUSTER_ID_BYTES = 31  # CONTROL.md, `attach`


class Publisher:
    """What is published on this node. One call at a time for each target.

    `executor` runs what blocks, `measurers` what may take minutes: it must not keep pods from starting.
    """

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        clusters: Clusters,
        shm: SharedMemory,
        executor: ThreadPoolExecutor,
        measurers: ThreadPoolExecutor,
    ) -> None:
        self.published: Callable[[str], None] = lambda _volume_id: None
        """Called with the id of a volume that a pod begins to have."""
        self.unpublished: Callable[[str], None] = lambda _volume_id: None
        """Told the id of a volume that a pod has no more."""
        self.deleted: Callable[[], None] = lambda: None
        """Called when there is trash to empty."""
        self.store = store
        self.sessions = sessions
        self.clusters = clusters
        self.shm = shm
        self._executor = executor
        self._measurers = measurers
        self._measuring: set[asyncio.Task[None]] = set()
        self._coming_or_gone = asyncio.Lock()
        """No record of a pod comes while its shared memory goes, because it seemed to have none."""

    async def blocking(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs `work` in a thread of the executor."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))

    async def publish(self, want: Published) -> None:
        """Makes the volume appear at its target as asked. It is there already: success, if as asked."""
        have = self.store.get(want.target)
        # The client library is another one after an upgrade: who has one keeps it.
        if have is not None and have.model_copy(update={"source": want.source}) != want:
            raise AlreadyExists(
                f"volume {have.volume_id} is published at {want.target} with other parameters; "
                "unpublish it first"
            )
        if have is not None and await self._is_alive(have):
            return
        self._check_others(want)
        if want.is_mount_of_ours:
            self.clusters.backend(want.cluster)
        if have is not None:
            log.info("volume %s at %s was cut off; starting again", want.volume_id, want.target)
            await self._take_away(have)
        async with self._coming_or_gone:
            self.store.put(want)
            self.published(want.volume_id)
        try:
            await self._bring(want)
        except BaseException:
            await self._take_away(want)
            if have is None:
                await self._forget(want)
            raise

    async def unpublish(self, volume_id: str, target: Path) -> None:
        """Leaves nothing of the volume at `target`, known or not, but what a StorageVolume keeps."""
        record = self.store.get(target)
        if record is None:
            await self.blocking(clear_target, target)
            return
        if record.volume_id != volume_id:
            raise InvalidArgument(f"{target} belongs to volume {record.volume_id}, not to {volume_id}")
        await self._take_away(record)
        await self._forget(record)

    def health(self, record: Published) -> Health:
        """How a published volume fares. Looks at no mount."""
        return self.sessions.health(record.session) if record.is_mount_of_ours else Health.SERVED

    def wanted_sessions(self) -> dict[str, Json]:
        """Configs of the sessions that usrbiod should serve."""
        return {
            record.session: self._config(record) for record in self.store.all() if record.is_mount_of_ours
        }

    async def measure(self, record: Published) -> Usage:
        """What a volume has and uses. From now on `df` in the pod shows it, too."""
        backend, loop = self.clusters.backend(record.cluster), asyncio.get_running_loop()
        usage = await loop.run_in_executor(self._measurers, backend.usage, record.volume_id)
        await self._tell_space([record])
        return usage

    async def grown(self, volume_id: str) -> None:
        """Has `df` show the new size of a volume, in every pod that has it."""
        await self._tell_space(record for record in self.store.all() if record.volume_id == volume_id)

    async def adopt(self) -> None:
        """At start: cleans up what no record knows, and records that a reboot made void.

        As long as the kubelet keeps its folder of a volume it will call again, to publish or to unpublish it.
        """
        known = {record.pod.key for record in self.store.all()}
        for pod_key in self.shm.pods():
            if pod_key not in known:
                await self.blocking(self.shm.remove, pod_key)
        for record in self.store.all():
            if not record.target.parent.exists():
                log.info("the kubelet has forgotten %s", record.target)
                try:
                    await self._take_away(record)
                    await self._forget(record)
                except (CsiError, OSError):
                    log.exception("%s cannot be cleaned up now", record.target)

    async def _is_alive(self, record: Published) -> bool:
        if record.is_mount_of_ours:
            await self.sessions.wait_up(WAIT_FOR_DAEMON_SECONDS)
            if self.sessions.health(record.session) is not Health.SERVED:
                return False
        return len(await self.blocking(mounts.mounts_at, record.target)) == 1

    def _check_others(self, want: Published) -> None:
        for other in self.store.all():
            is_second = other.volume_id == want.volume_id and other.target != want.target
            if is_second and (want.exclusive or other.exclusive):
                raise Precondition(
                    f"volume {want.volume_id} is ReadWriteOncePod and has a pod already; delete that first"
                )
        if want.kind == "shm":
            for other in self.store.of_pod(want.pod.key):
                if other.kind == "shm" and (other.size, other.huge) != (want.size, want.huge):
                    raise InvalidArgument(
                        f"the pod has shared memory of {other.size} bytes already, and has one tmpfs; "
                        "give all its volumes of kind shm the same size and huge"
                    )

    async def _bring(self, want: Published) -> None:
        if not want.is_mount_of_ours:
            await self.blocking(self._bind, want)
            return
        await self.sessions.wait_up(WAIT_FOR_DAEMON_SECONDS)
        fds = await self.blocking(self._mount, want)
        await self.sessions.attach(self._config(want), fds)
        if want.kind == "filesystem" and not self.clusters.backend(want.cluster).is_measured(want.volume_id):
            task = asyncio.create_task(self._measure_first(want))
            self._measuring.add(task)
            task.add_done_callback(self._measuring.discard)

    async def _measure_first(self, record: Published) -> None:
        """The kubelet asks a minute later: until then, `df` in the pod would show an empty volume."""
        try:
            await self.measure(record)
        except (CsiError, OSError) as error:
            log.info("what volume %s uses is not known now: %s", record.volume_id, error)

    def _config(self, record: Published) -> Json:
        space = self._space(record)
        return config(record) | ({"space": space} if space else {})

    def _space(self, record: Published) -> Json | None:
        """Size and use of a volume, as far as known without measuring; None while its data is away."""
        try:
            backend = self.clusters.backend(record.cluster)
            total = backend.capacity(record.volume_id)
        except (CsiError, OSError) as error:
            log.info("the size of volume %s is not known now: %s", record.volume_id, error)
            return None
        return {"total": total, "used": backend.last_used(record.volume_id)}

    async def _tell_space(self, records: Iterable[Published]) -> None:
        known = {record.session: self._space(record) for record in records if record.is_mount_of_ours}
        await self.sessions.set_space({name: space for name, space in known.items() if space})

    def _bind(self, want: Published) -> None:
        make_target(want.target)
        if want.kind == "shm":
            self.shm.show(want.pod.key, want.target, want.size, want.huge)
        else:
            assert want.source is not None  # noqa: S101 the service sets it for this kind
            mounts.bind(want.source, want.target)

    def _mount(self, want: Published) -> dict[str, int]:
        backend = self.clusters.backend(want.cluster)
        if want.kind == "scratch":
            backend.create(want.volume_id, want.size, None, lambda _done, _total: None)
        backing = backend.existing("volume", want.volume_id)
        if want.group is not None and not want.read_only:
            give_to_group(backing, want.group)
        make_target(want.target)
        fds: dict[str, int] = {}
        try:
            fds["backing"] = os.open(backing, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fds["shm"] = self.shm.open(want.pod.key)
            read_only = mounts.MS_RDONLY if want.read_only else 0
            fds["fuse"] = mounts.mount_fuse(want.target, want.mount_flags | read_only)
        except BaseException:
            close_all(fds.values())
            raise
        return fds

    async def _take_away(self, record: Published) -> None:
        await self.blocking(clear_target, record.target)
        if record.is_mount_of_ours:
            await self.sessions.detach(record.session)

    def _delete_scratch(self, record: Published) -> None:
        try:
            backend = self.clusters.backend(record.cluster)
        except Precondition as error:  # the cluster was taken from this node, and its data with it
            log.warning("scratch volume %s is left to itself: %s", record.volume_id, error)
            return
        backend.delete("volume", record.volume_id)

    async def _forget(self, record: Published) -> None:
        if record.kind == "scratch":
            await self.blocking(self._delete_scratch, record)
            self.deleted()
        async with self._coming_or_gone:
            self.store.remove(record)
            if not self.store.of_pod(record.pod.key):
                await self.blocking(self.shm.remove, record.pod.key)
        self.unpublished(record.volume_id)


def config(record: Published) -> Json:
    """What usrbiod is asked to serve for `record` (CONTROL.md, `attach`)."""
    return {
        "name": record.session,
        "cluster": record.cluster.encode()[:_CLUSTER_ID_BYTES].decode(errors="ignore"),
        "mount_point": str(record.target),
        "read_only": record.read_only,
        "idmap": record.user_namespace,
        "passthrough": record.passthrough,
    }


def make_target(target: Path) -> None:
    """The directory to mount at. The kubelet makes its parents; a link in its place is refused."""
    target.mkdir(mode=0o750, parents=True, exist_ok=True)
    if target.is_symlink() or lies_below_link(target):
        raise InvalidArgument(f"{target} is or leads through a symbolic link; give the path itself")


def clear_target(target: Path) -> None:
    """Unmounts what is at `target` and removes the directory, as CSI asks for."""
    if not lies_below_link(target):  # nothing of ours is mounted there, see `make_target`
        mounts.unmount(target)
    try:
        target.rmdir()
    except (FileNotFoundError, NotADirectoryError):
        return


def lies_below_link(target: Path) -> bool:
    """Whether a directory above `target` is a symbolic link. Does not look at `target`: it may hang."""
    return target.parent.resolve() != target.parent
