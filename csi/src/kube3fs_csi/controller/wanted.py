"""Whether what was begun is still wanted, and what becomes of it when it is not.

CreateVolume and CreateSnapshot may be called many times until the node has done its work. If the claim
goes meanwhile, the sidecar may remember it and ask until there is something that it can delete; or it was
restarted and knows nothing. So an object carries for whom it is made (PENDING_FOR) until a call has been
answered with success: before that nobody can have stored anything in it, and it is taken back when nobody
wants it.
"""

import asyncio
import logging
from typing import TypeVar

from kube3fs_crds import StorageSnapshot, StorageVolume
from kube3fs_csi.kube.api import Api
from kube3fs_csi.kube.claims import PersistentVolumes, claim_uid, content_is_wanted
from kube3fs_csi.kube.informer import Informer
from kube3fs_csi.kube.objects import Objects
from kube3fs_csi.names import PENDING_FOR
from kube3fs_csi.serving.errors import AlreadyExists, CsiError

log = logging.getLogger(__name__)

R = TypeVar("R", StorageVolume, StorageSnapshot)

_SWEEP_SECONDS = 30.0
_CLAIM_PREFIX = "pvc-"
"""The provisioner names a volume after its claim's uid."""


def is_pending(found: StorageVolume | StorageSnapshot) -> bool:
    """Whether no call was ever answered with success for it."""
    return PENDING_FOR in found.metadata.annotations


async def volume_is_wanted(api: Api, name: str, claim: str) -> bool:
    """Whether the claim NAMESPACE/NAME for which a volume is made is there. An unknown one ('') may be."""
    namespace, slash, claim_name = claim.partition("/")
    if not slash:
        return True
    uid = await claim_uid(api, namespace, claim_name)
    return uid is not None and (not name.startswith(_CLAIM_PREFIX) or name == f"{_CLAIM_PREFIX}{uid}")


async def snapshot_is_wanted(api: Api, content: str) -> bool:
    """Whether the VolumeSnapshotContent of a snapshot is there. An unknown one ('') may be."""
    return not content or await content_is_wanted(api, content)


class Sweeper:
    """Takes back, now and then, what was begun for somebody who is gone. Any number of them may run."""

    def __init__(
        self,
        api: Api,
        objects: Objects,
        volumes: Informer[StorageVolume],
        snapshots: Informer[StorageSnapshot],
    ) -> None:
        self._api = api
        self._persistent_volumes = PersistentVolumes(api)
        self._objects = objects
        self._volumes = volumes
        self._snapshots = snapshots

    async def run(self) -> None:
        """Never returns; cancel it."""
        while True:
            try:
                await self.sweep()
            except Exception:  # calls go on all the same
                log.exception("looking for what nobody wants any more met a defect")
            await asyncio.sleep(_SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Looks at everything that is pending, once. What cannot be judged now is left for the next time."""
        for volume in list(self._volumes.items.values()):
            await self._judge(volume)
        for snapshot in list(self._snapshots.items.values()):
            await self._judge(snapshot)

    async def _judge(self, found: R) -> None:
        if not is_pending(found) or found.metadata.deletion_timestamp:
            return
        name, whom = found.metadata.name, found.metadata.annotations[PENDING_FOR]
        try:
            if isinstance(found, StorageSnapshot):
                wanted = await snapshot_is_wanted(self._api, whom)
            else:
                wanted = await volume_is_wanted(self._api, name, whom)
                # Somebody may have made one by hand.
                wanted = wanted or bool(await self._persistent_volumes.of(name))
            if not wanted:
                await self._take_back(type(found), name, whom)
        except CsiError as error:
            log.warning("whether %s is still wanted is not known now: %s", name, error)

    async def _take_back(self, kind: type[R], name: str, whom: str) -> None:
        found = await self._objects.get(kind, name)
        if found is None or not is_pending(found):
            return
        try:
            # A call that is answered with success meanwhile changes the object first.
            await self._objects.delete(kind, name, found.metadata.resource_version)
        except AlreadyExists:
            return
        log.warning("%s %s was made for %s, which is gone: it is taken back", kind.__name__, name, whom)
