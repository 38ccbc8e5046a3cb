"""Leader election by Lease: of the replicas one acts, the others wait.

The election is kubernetes.aio's. What is added: a request that fails or hangs counts as a missed renewal,
where the library would let the exception end the election; and the lease is given back on a clean exit, so
that an upgrade does not wait for it to expire.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.leaderelectionrecord import LeaderElectionRecord
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from kube3fs_operator import metrics

log = logging.getLogger(__name__)

LEASE_NAME = "kube3fs-operator"
LEASE_SECONDS = 30
RENEW_SECONDS = 20
RETRY_SECONDS = 5
REQUEST_SECONDS = 4.0
UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError)


class PatientLock(LeaseLock):
    """A lease whose API server may be away for a while."""

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        """As the library's; unreachable is an error answer, not an exception."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                found: tuple[bool, Any] = await super().get(name, namespace)
                return found
        except UNREACHABLE as error:
            return False, ApiException(status=0, reason=f"the API server cannot be reached: {error!r}")

    async def create(self, name: str, namespace: str, election_record: LeaderElectionRecord) -> bool:
        """Make the lease; False when unreachable."""
        # The library's own asks with `pretty=True`, which its client refuses (kubernetes 37.0.2).
        body = client.V1Lease(
            metadata=client.V1ObjectMeta(name=name), spec=self.update_lease(election_record)
        )

        async def make() -> bool:
            try:
                await self.api_instance.create_namespaced_lease(namespace, body)
            except ApiException as error:
                log.warning("the lease could not be made: %s %s", error.status, error.reason)
                return False
            return True

        return await self._attempt(make())

    async def update(self, name: str, namespace: str, updated_record: LeaderElectionRecord) -> bool:
        """As the library's; False when unreachable."""
        return await self._attempt(super().update(name, namespace, updated_record))

    async def give_back(self) -> None:
        """Let the next replica lead at once, if we are still the holder."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                lease = await self.api_instance.read_namespaced_lease(self.name, self.namespace)
                if lease.spec and lease.spec.holder_identity == self.identity:
                    lease.spec.holder_identity = None
                    await self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)
        except (ApiException, *UNREACHABLE) as error:
            log.warning("the lease was not given back, the next leader waits for it to expire: %s", error)

    @staticmethod
    async def _attempt(call: Awaitable[bool]) -> bool:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await call
        except UNREACHABLE as error:
            log.warning("lease: the API server cannot be reached: %r", error)
            return False


async def lead(
    api_client: client.ApiClient,
    namespace: str,
    identity: str,
    work: Callable[[], Awaitable[None]],
) -> None:
    """Wait for the lease, then work until the work ends or the lease is lost; cancel to stop.

    Raises LeaseLostError when another replica may lead by now: the process should end.
    """
    lock = PatientLock(LEASE_NAME, namespace, identity, api_client)
    working: asyncio.Task[None] | None = None
    started = asyncio.Event()

    async def start() -> None:
        nonlocal working
        log.info("leading as %s", identity)
        metrics.LEADER.set(1)
        working = asyncio.ensure_future(work())
        started.set()

    async def nothing() -> None:
        """The end of the election is seen by its task ending."""

    config = Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, start, nothing)
    election = asyncio.create_task(LeaderElection(config).run())
    waiting: asyncio.Task[Any] = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({election, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if working is None:
            await election
            return
        await asyncio.wait({election, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise LeaseLostError("the lease was lost: another replica leads")
        await working
    finally:
        metrics.LEADER.set(0)
        tasks = [task for task in (election, waiting, working) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if working is not None:
            await lock.give_back()


class LeaseLostError(RuntimeError):
    """Another replica may lead: stop at once."""
