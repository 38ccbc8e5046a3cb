"""Which node plugins have fallen silent: a StorageNode says what its plugin saw last, however long ago.

A node plugin renews a Lease while it reports. It is silent when the Lease has not changed for as long as
it says, by our own clock: a node's clock may be wrong. One without a Lease, of an earlier version, is not
judged.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from kube3fs_crds import LEASE_SECONDS
from kube3fs_operator.api import Api, NodeLease

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
BLIND_SECONDS = 15.0
"""Without an answer for so long we know nothing: the API server was away, perhaps for the nodes as well."""


class _Seen(NamedTuple):
    renewed: str
    since: float
    seconds: float


class Silence:
    """What was seen of the Leases, and when."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, _Seen] = {}
        self._silent: frozenset[str] = frozenset()
        self._looked_at = float("-inf")

    def observe(self, leases: Iterable[NodeLease]) -> Collection[str]:
        """Takes note of all Leases that there are. Returns the nodes that fell silent, or spoke again."""
        now = self._clock()
        blind = now - self._looked_at > BLIND_SECONDS
        self._looked_at = now
        before, self._seen = self._seen, {}
        for lease in leases:
            old = before.get(lease.node)
            same = old is not None and old.renewed == lease.renewed and not blind
            since = old.since if old is not None and same else now
            self._seen[lease.node] = _Seen(lease.renewed, since, lease.seconds or LEASE_SECONDS)
        was, self._silent = (
            self._silent,
            frozenset(node for node, seen in self._seen.items() if now - seen.since > seen.seconds),
        )
        return was ^ self._silent

    def renewed(self, node: str) -> str | None:
        """For a node that is silent, when it last spoke, as its Lease has it; None for others."""
        return self._seen[node].renewed if node in self._silent else None


async def watch(api: Api, silence: Silence, changed: Callable[[str], None]) -> None:
    """Looks again and again; cancel it. `changed` is told the node."""
    while True:
        try:
            for node in silence.observe(await api.node_leases()):
                changed(node)
        except (ApiException, aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("the Leases of the node plugins cannot be read: %r", error)
        await asyncio.sleep(POLL_SECONDS)
