"""Lets a group read and write a volume (fsGroup of a pod).

The driver does it for the kubelet (VOLUME_MOUNT_GROUP), which then does not look at `fsGroupChangePolicy`. A
volume whose root is not the group's is handed over wholly before its pod starts, however long that takes: the
walk goes on while calls come and go. One whose root is the group's already was handed over before: what came
into other groups' hands since, as when root unpacks an archive, follows. That is looked for at each start,
for a few seconds before the pod runs and for the rest beside it. What is the group's own keeps its mode.
"""

import asyncio
import logging
import os
import stat
from pathlib import Path

from kube3fs_csi.node import trees
from kube3fs_csi.node.lanes import CALL_SECONDS, Lanes
from kube3fs_csi.serving.errors import CsiError, DeadlineNear

log = logging.getLogger(__name__)

_ROOT_BITS = stat.S_ISGID | stat.S_IRWXG
AGAIN_SECONDS = 5.0
"""How long the start of a pod waits for what a group has had before."""


class _Walk:
    """A volume on its way to a group."""

    def __init__(self, group: int) -> None:
        self.group = group
        self.met = 0
        self.task: asyncio.Task[None] | None = None


class Groups:
    """Hands volumes over: one walk a volume at a time. For one event loop."""

    def __init__(self, lanes: Lanes, call_seconds: float = CALL_SECONDS) -> None:
        self._lanes = lanes
        self._call_seconds = call_seconds
        self._walks: dict[str, _Walk] = {}

    async def give(self, cluster: str, volume_id: str, path: Path, group: int) -> None:
        """Returns when the volume at `path` is the group's; DeadlineNear when that takes longer."""
        again = await self._lanes.of(cluster, "call").run(
            f"the root of volume {volume_id}", lambda: is_the_groups(path, group)
        )
        walk = self._walks.get(volume_id)
        if walk is not None and walk.group != group:
            if not await self._ends(walk, self._call_seconds):
                raise self._still_at_work(volume_id, walk)
            walk = self._walks.get(volume_id)
        if walk is None:
            walk = self._start(cluster, volume_id, path, group)
        if not await self._ends(walk, AGAIN_SECONDS if again else self._call_seconds):
            if again:
                return
            raise self._still_at_work(volume_id, walk)
        assert walk.task is not None  # noqa: S101 it has ended
        try:
            walk.task.result()
        except (CsiError, OSError):
            if not again:
                raise

    def _start(self, cluster: str, volume_id: str, path: Path, group: int) -> _Walk:
        walk = _Walk(group)

        def told(met: int) -> None:
            walk.met = met

        async def work() -> None:
            await self._lanes.of(cluster, "group").run(
                f"volume {volume_id}", lambda: trees.give_to_group(path, group, told), seconds=None
            )

        def done(task: asyncio.Task[None]) -> None:
            self._walks.pop(volume_id, None)
            if not task.cancelled() and task.exception() is not None:
                log.warning("volume %s is not all its group's: %s", volume_id, task.exception())

        self._walks[volume_id] = walk
        walk.task = asyncio.create_task(work())
        walk.task.add_done_callback(done)
        return walk

    async def _ends(self, walk: _Walk, seconds: float) -> bool:
        assert walk.task is not None  # noqa: S101 `_start` makes it
        done, _ = await asyncio.wait({walk.task}, timeout=seconds)
        return bool(done)

    def _still_at_work(self, volume_id: str, walk: _Walk) -> DeadlineNear:
        return DeadlineNear(
            f"volume {volume_id} is being handed to group {walk.group} (fsGroup): {walk.met} files so far; "
            "the work goes on, and the pod starts when it is done"
        )


def is_the_groups(root: Path, group: int) -> bool:
    """Whether a volume was handed over to `group` before. Blocks."""
    now = root.lstat()
    return now.st_gid == group and now.st_mode & _ROOT_BITS == _ROOT_BITS


def give_empty(fd: int, group: int) -> None:
    """Hands over the root of a new volume, in which nothing is yet. Blocks."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    os.fchmod(fd, mode | _ROOT_BITS)
    os.fchown(fd, -1, group)
