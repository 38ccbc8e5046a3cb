"""Publishes volumes at target paths, and takes them away. Every step can be repeated."""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from kube3fs_csi.backends.base import Backend, Usage
from kube3fs_csi.node import mounts, scratch
from kube3fs_csi.node.clusters import Clusters
from kube3fs_csi.node.group import Groups, give_empty
from kube3fs_csi.node.lanes import Lanes, Stuck
from kube3fs_csi.node.sessions import Health, Sessions, close_all
from kube3fs_csi.node.shm import SharedMemory
from kube3fs_csi.node.state import Published, Store
from kube3fs_csi.node.usrbiod import Json
from kube3fs_csi.serving.errors import AlreadyExists, CsiError, InvalidArgument, Precondition, Unavailable
from kube3fs_csi.serving.locks import KeyLocks

log = logging.getLogger(__name__)

WAIT_FOR_DAEMON_SECONDS = 20.0
_CLUSTER_ID_BYTES = 31  # CONTROL.md, `attach`


class Opened(NamedTuple):
    """A volume's directory, open, and the size it was promised. The fd is the receiver's."""

    fd: int
    capacity: int


class Publisher:
    """What is published on this node. One call at a time for each target.

    What a data root is asked for runs in the lanes of its cluster. Nothing here waits for a data root without
    a deadline, and taking a mount away waits for none.
    """

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        clusters: Clusters,
        shm: SharedMemory,
        lanes: Lanes,
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
        self.lanes = lanes
        self.locks = KeyLocks()
        """What calls work on now, see `at`."""
        self._groups = Groups(lanes)
        self._measuring: dict[str, asyncio.Task[Usage]] = {}
        self._capacities: dict[str, int] = {}
        """Sizes of the volumes that pods have, as read last."""
        self._coming_or_gone = asyncio.Lock()
        """No record of a pod comes while its shared memory goes, because it seemed to have none."""

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
            if want.kind == "scratch" and have is None:
                # With the record, in one step: of many pods none takes what another was allowed.
                scratch.check(self.clusters.scratch_policy(want.cluster), want, self.store.all())
            self.store.put(want)
            self.published(want.volume_id)
        try:
            await self._bring(want)
        except Stuck:
            # Its record stays: what the data root still does for it is found by the next call, and undone by
            # NodeUnpublishVolume, with which the kubelet ends every attempt.
            await self._take_away(want)
            raise
        except BaseException:
            await self._take_away(want)
            if have is None:
                await self._forget(want)
            raise

    async def unpublish(self, volume_id: str, target: Path) -> None:
        """Leaves nothing of the volume at `target`, known or not, but what a StorageVolume keeps."""
        record = self.store.get(target)
        if record is None:
            await self._clear("", target)
            return
        if record.volume_id != volume_id:
            raise InvalidArgument(f"{target} belongs to volume {record.volume_id}, not to {volume_id}")
        await self._take_away(record)
        await self._forget(record)

    def health(self, record: Published) -> Health:
        """How a published volume fares. Looks at no mount."""
        return self.sessions.health(record.session) if record.is_mount_of_ours else Health.SERVED

    def why(self, record: Published) -> str:
        """What `health` means for it, in a sentence."""
        return self.sessions.why(record.session)

    def wanted_sessions(self) -> dict[str, Json]:
        """Configs of the sessions that usrbiod should serve."""
        devices = mounts.fuse_devices()  # once: the mount table of a busy node is long
        return {
            record.session: self._config(record, devices)
            for record in self.store.all()
            if record.is_mount_of_ours
        }

    async def measure(self, record: Published) -> Usage:
        """What a volume has and uses. From now on `df` in the pod shows it, too.

        Walking a large volume takes minutes: who is cancelled finds the result the next time.
        """
        return await asyncio.shield(self._start_measuring(record))

    async def capacity(self, record: Published) -> int:
        """Bytes that the volume was promised, asked now."""
        backend = self.clusters.backend(record.cluster)
        lane = self.lanes.of(record.cluster, "call")
        size = await lane.run(f"the size of {at(record)}", lambda: backend.capacity(record.volume_id))
        self._capacities[record.volume_id] = size
        return size

    async def grown(self, volume_id: str) -> None:
        """Has `df` show the new size of a volume, in every pod that has it."""
        records = [record for record in self.store.all() if record.volume_id == volume_id]
        if records:
            await self.capacity(records[0])
            await self._tell_space(records)

    async def adopt(self) -> None:
        """After a start: cleans up what no record knows, and records that a reboot made void.

        As long as the kubelet keeps its folder of a volume it will call again, to publish or to unpublish it.
        """
        for pod_key in self.shm.pods():
            try:
                async with self._coming_or_gone:
                    if not self.store.of_pod(pod_key):
                        await self._in_shm(f"the memory of pod {pod_key}", partial(self.shm.remove, pod_key))
            except (CsiError, OSError) as error:
                log.warning("the memory of pod %s cannot be cleaned up now: %s", pod_key, error)
        for record in self.store.all():
            if not record.target.parent.exists():
                log.info("the kubelet has forgotten %s", record.target)
                try:
                    with self.locks.hold(at(record)):
                        await self._take_away(record)
                        await self._forget(record)
                except (CsiError, OSError) as error:
                    log.warning("%s cannot be cleaned up now: %s", record.target, error)

    async def learn_sizes(self) -> None:
        """After a start: has `df` show the sizes of the volumes that pods have already."""

        async def learn(records: list[Published]) -> None:
            for record in records:
                try:
                    await self.capacity(record)
                except (CsiError, OSError) as error:
                    log.info("the size of volume %s is not known now: %s", record.volume_id, error)
            await self._tell_space(records)

        by_cluster: dict[str, list[Published]] = {}
        for record in self.store.all():
            if record.is_mount_of_ours and record.volume_id not in self._capacities:
                by_cluster.setdefault(record.cluster, []).append(record)
        await asyncio.gather(*map(learn, by_cluster.values()))

    async def _is_alive(self, record: Published) -> bool:
        if record.is_mount_of_ours:
            await self.sessions.wait_up(WAIT_FOR_DAEMON_SECONDS)
            health = self.sessions.health(record.session)
            if health is Health.WAITING:
                raise Unavailable(f"volume {record.volume_id}: {self.sessions.why(record.session)}; retry")
            if health is not Health.SERVED:
                return False
        lane = self.lanes.of(record.cluster, "mount")
        return len(await lane.run(at(record), lambda: mounts.mounts_at(record.target))) == 1

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
        lane = self.lanes.of(want.cluster, "mount")
        if not want.is_mount_of_ours:
            await lane.run(at(want), lambda: self._bind(want))
            return
        await self.sessions.wait_up(WAIT_FOR_DAEMON_SECONDS)
        backend = self.clusters.backend(want.cluster)
        if want.kind == "filesystem" and want.group is not None and not want.read_only:
            path = await self.lanes.of(want.cluster, "call").run(
                at(want), lambda: backend.existing("volume", want.volume_id)
            )
            await self._groups.give(want.cluster, want.volume_id, path, want.group)
        opened = await self.lanes.of(want.cluster, "call").run(
            at(want), lambda: open_volume(backend, want), discard=lambda late: os.close(late.fd)
        )
        self._capacities[want.volume_id] = opened.capacity
        try:
            fds = await lane.run(
                at(want), lambda: self._mount(want), discard=lambda late: close_all(late.values())
            )
        except BaseException:
            os.close(opened.fd)
            raise
        await self.sessions.attach(self._config(want, mounts.fuse_devices()), fds | {"backing": opened.fd})
        if want.kind == "filesystem" and not backend.is_measured(want.volume_id):
            # The kubelet asks a minute later: until then, `df` in the pod would show an empty volume.
            self._start_measuring(want)

    def _start_measuring(self, record: Published) -> asyncio.Task[Usage]:
        task = self._measuring.get(record.volume_id)
        if task is None:
            task = asyncio.create_task(self._measure(record))
            self._measuring[record.volume_id] = task
            task.add_done_callback(lambda _done: self._measuring.pop(record.volume_id, None))
            task.add_done_callback(_log_failure)
        return task

    async def _measure(self, record: Published) -> Usage:
        backend = self.clusters.backend(record.cluster)
        lane = self.lanes.of(record.cluster, "measure")
        usage = await lane.run(at(record), lambda: backend.usage(record.volume_id), seconds=None)
        self._capacities[record.volume_id] = usage.total
        await self._tell_space([record])
        return usage

    def _config(self, record: Published, devices: Mapping[Path, int]) -> Json:
        space = self._space(record)
        device = devices.get(record.target)
        return (
            config(record)
            | ({"space": space} if space else {})
            | ({"device": device} if device is not None else {})
        )

    def _space(self, record: Published) -> Json | None:
        """Size and use of a volume, as far as they are known without asking."""
        total = self._capacities.get(record.volume_id)
        if total is None:
            return None
        try:
            used = self.clusters.backend(record.cluster).last_used(record.volume_id)
        except CsiError:  # it hangs, or its disk is away
            used = 0
        return {"total": total, "used": used}

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
        make_target(want.target)
        fds: dict[str, int] = {}
        try:
            fds["shm"] = self.shm.open(want.pod.key)
            read_only = mounts.MS_RDONLY if want.read_only else 0
            fds["fuse"] = mounts.mount_fuse(want.target, want.mount_flags | read_only)
        except BaseException:
            close_all(fds.values())
            raise
        return fds

    async def _take_away(self, record: Published) -> None:
        await self._clear(record.cluster, record.target)
        if record.is_mount_of_ours:
            await self.sessions.detach(record.session)

    async def _clear(self, cluster: str, target: Path) -> None:
        lane = self.lanes.of(cluster, "unmount")
        await lane.run(f"the mount at {target}", lambda: clear_target(target))

    async def _in_shm(self, what: str, work: Callable[[], None]) -> None:
        await self.lanes.of("", "mount").run(what, work)

    async def _delete_scratch(self, record: Published) -> None:
        try:
            backend = self.clusters.backend(record.cluster)
        except Precondition as error:  # the cluster was taken from this node, and its data with it
            log.warning("scratch volume %s is left to itself: %s", record.volume_id, error)
            return
        lane = self.lanes.of(record.cluster, "call")
        await lane.run(at(record), lambda: backend.delete("volume", record.volume_id))

    async def _forget(self, record: Published) -> None:
        if record.kind == "scratch":
            await self._delete_scratch(record)
            self.deleted()
        async with self._coming_or_gone:
            self.store.remove(record)
            if not self.store.of_pod(record.pod.key):
                await self._in_shm(
                    f"the memory of pod {record.pod.key}", partial(self.shm.remove, record.pod.key)
                )
        if all(other.volume_id != record.volume_id for other in self.store.all()):
            self._capacities.pop(record.volume_id, None)
        self.unpublished(record.volume_id)


def open_volume(backend: Backend, want: Published) -> Opened:
    """The directory that usrbiod serves, made for a scratch volume and given to the pod's group. Blocks."""
    if want.kind == "scratch":
        backend.create(want.volume_id, want.size, None, lambda _done, _total: None)
    path = backend.existing("volume", want.volume_id)
    capacity = backend.capacity(want.volume_id)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if want.kind == "scratch" and want.group is not None:
            give_empty(fd, want.group)
    except BaseException:
        os.close(fd)
        raise
    return Opened(fd, capacity)


def at(record: Published) -> str:
    """What is worked on, for locks and lanes: a late call must be over before the next may touch the same."""
    return place(record.volume_id, record.target)


def place(volume_id: str, target: Path) -> str:
    """The same, without a record."""
    return f"volume {volume_id} at {target}"


def _log_failure(done: asyncio.Task[Usage]) -> None:
    if not done.cancelled() and done.exception() is not None:
        log.info("what a volume uses is not known now: %s", done.exception())


def config(record: Published) -> Json:
    """What usrbiod is asked to serve for `record` (CONTROL.md, `attach`)."""
    return {
        "name": record.session,
        "cluster": record.cluster.encode()[:_CLUSTER_ID_BYTES].decode(errors="ignore"),
        "mount_point": str(record.target),
        "read_only": record.read_only,
        "idmap": record.user_namespace,
        "passthrough": record.passthrough,
    } | ({"orders": True} if record.orders else {})


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
