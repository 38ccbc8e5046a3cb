"""What the node offers, from what verbs or sysfs report. Pure functions: every machine can be a test."""

import ipaddress
import re
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import NamedTuple

from kube3fs_crds import RdmaDevice, RdmaPort, RdmaStatus

ACTIVE = "ACTIVE"
_MAX_DEVICE_ID = 63  # deviceplugin/v1beta1/api.proto, Device.ID
_GID_BYTES = 16


class RawPort(NamedTuple):
    """A port as reported: `gids` are (index, 16 bytes, type such as "RoCE v2" or "")."""

    number: int
    state: str
    link_layer: str
    gids: Sequence[tuple[int, bytes, str]] = ()


@dataclass(frozen=True)
class RawDevice:
    """A verbs device as reported. `uverbs` is the name below /dev/infiniband, '' if there is none."""

    name: str
    uverbs: str
    numa_node: int = -1
    ports: Sequence[RawPort] = field(default=())


class Offered(NamedTuple):
    """A device that pods may have."""

    name: str
    uverbs: str
    healthy: bool
    numa_node: int | None
    status: RdmaDevice


def offered(found: Iterable[RawDevice], only: str = "") -> list[Offered]:
    """The devices that pods may have, by name: those whose name matches `only` and that have a uverbs."""
    wanted = re.compile(only) if only else None
    chosen = [one for one in found if one.uverbs and (wanted is None or wanted.fullmatch(one.name))]
    return [_offer(one) for one in sorted(chosen, key=lambda one: one.name)]


def _offer(found: RawDevice) -> Offered:
    numa_node = found.numa_node if found.numa_node >= 0 else None
    ports = [
        RdmaPort(
            number=port.number,
            state=port.state,
            link_layer=port.link_layer,
            gids=[text for gid in port.gids if (text := _gid_text(*gid))],
        )
        for port in sorted(found.ports)
    ]
    return Offered(
        found.name,
        found.uverbs,
        any(port.state == ACTIVE for port in found.ports),
        numa_node,
        RdmaDevice(name=found.name, numa_node=numa_node, ports=ports),
    )


def _gid_text(index: int, gid: bytes, kind: str) -> str:
    """`3 RoCE v2 ::ffff:10.0.0.1` for a row of the GID table; empty for a row that holds nothing."""
    if len(gid) != _GID_BYTES or not any(gid[8:]):
        return ""
    address = ipaddress.IPv6Address(gid)
    mapped = address.ipv4_mapped
    return f"{index} {kind + ' ' if kind else ''}{f'::ffff:{mapped}' if mapped else address}"


def status(devices: Sequence[Offered], found: int, only: str, trouble: str) -> RdmaStatus:
    """What StorageNode reports. `trouble`: why looking failed, or empty."""
    down = [device.name for device in devices if not device.healthy]
    message = ""
    if trouble:
        message = trouble
    elif not found:
        message = "the kernel has no RDMA device: no card, or no driver for it is loaded"
    elif not devices:
        message = f"none of {found} RDMA devices matches the filter {only!r} and has a uverbs device"
    elif down:
        message = f"no active port: {', '.join(down)}"
    return RdmaStatus(message=message, devices=[device.status for device in devices])


def share_ids(device: str, shares: int) -> list[str]:
    """Ids by which the kubelet counts a device: itself, or itself with the number of a share."""
    if shares == 1:
        return [device[:_MAX_DEVICE_ID]]
    return [f"{device[: _MAX_DEVICE_ID - 5]}-{number}" for number in range(shares)]


def prefer(
    available: Sequence[str], must: Sequence[str], size: int, devices: Sequence[Offered], shares: int
) -> list[str]:
    """Shares for one container: of as many devices as can be, on as few NUMA nodes as can be."""
    owner = {share: device for device in devices for share in share_ids(device.name, shares)}
    chosen = list(must)
    free = sorted(share for share in available if share in owner and share not in chosen)
    while len(chosen) < size and free:
        used = [owner[share].name for share in chosen if share in owner]
        nodes = {owner[share].numa_node for share in chosen if share in owner}

        def cost(
            share: str, used: Sequence[str] = used, near: Set[int | None] = nodes
        ) -> tuple[int, bool, str]:
            device = owner[share]
            return used.count(device.name), bool(near) and device.numa_node not in near, share

        best = min(free, key=cost)
        chosen.append(best)
        free.remove(best)
    return chosen
