"""Asks the machine which RDMA devices it has: verbs for devices, ports and GIDs, sysfs for the rest."""

import importlib
import ipaddress
from pathlib import Path
from typing import Any

from kube3fs_csi.devices.discovery import RawDevice, RawPort

_STATES = {1: "DOWN", 2: "INIT", 3: "ARMED", 4: "ACTIVE", 5: "ACTIVE_DEFER"}  # enum ibv_port_state
_LINK_LAYERS = {0: "Unspecified", 1: "InfiniBand", 2: "Ethernet"}  # IBV_LINK_LAYER_*
_GID_TYPES = {0: "", 1: "RoCE v1", 2: "RoCE v2"}  # enum ibv_gid_type; 0 is InfiniBand, or RoCE v1 on Ethernet
SYSFS = Path("/sys")


def read(sysfs: Path = SYSFS) -> tuple[list[RawDevice], str]:
    """Every device, and why there may be some that are not among them ('': there are none)."""
    names = _uverbs(sysfs)
    if sysfs == SYSFS:
        try:
            return _from_verbs(names, sysfs), ""
        except ImportError:
            pass  # libibverbs is not installed: sysfs knows nearly as much
        except Exception as error:  # pyverbs raises its own kind, which cannot be named without it
            if names:
                return _from_sysfs(names, sysfs), f"verbs cannot open the devices: {error}"
            return [], ""
    return _from_sysfs(names, sysfs), ""


def _uverbs(sysfs: Path) -> dict[str, str]:
    """Names below /dev/infiniband by verbs device."""
    folder = sysfs / "class/infiniband_verbs"
    return {_text(path / "ibdev"): path.name for path in folder.glob("uverbs*") if (path / "ibdev").exists()}


def _from_verbs(names: dict[str, str], sysfs: Path) -> list[RawDevice]:
    device: Any = importlib.import_module("pyverbs.device")
    found = []
    for one in device.get_device_list():
        name = one.name.decode()
        with device.Context(name=name) as context:
            count = context.query_device().phys_port_cnt
            table = context.query_gid_table()
            ports = [_verbs_port(context, number, table) for number in range(1, count + 1)]
        found.append(RawDevice(name, names.get(name, ""), _numa_node(sysfs, name), ports))
    return found


def _verbs_port(context: Any, number: int, table: Any) -> RawPort:
    attributes = context.query_port(number)
    gids = [
        (entry.gid_index, ipaddress.IPv6Address(entry.gid).packed, _GID_TYPES.get(entry.gid_type, ""))
        for entry in table
        if entry.port_num == number
    ]
    state = _STATES.get(attributes.state, "UNKNOWN")
    return RawPort(number, state, _LINK_LAYERS.get(attributes.link_layer, ""), gids)


def _from_sysfs(names: dict[str, str], sysfs: Path) -> list[RawDevice]:
    found = []
    for path in sorted((sysfs / "class/infiniband").glob("*")):
        ports = [_sysfs_port(port) for port in sorted((path / "ports").iterdir(), key=lambda p: int(p.name))]
        found.append(RawDevice(path.name, names.get(path.name, ""), _numa_node(sysfs, path.name), ports))
    return found


def _sysfs_port(path: Path) -> RawPort:
    gids = []
    for row in sorted((path / "gids").glob("*"), key=lambda row: int(row.name)):
        gid = bytes.fromhex(_text(row).replace(":", ""))
        if any(gid):
            gids.append((int(row.name), gid, _gid_type(path / "gid_attrs/types" / row.name)))
    state = _text(path / "state").rpartition(": ")[2]  # "4: ACTIVE"
    return RawPort(int(path.name), state, _text(path / "link_layer"), gids)


def _gid_type(path: Path) -> str:
    """The kernel writes "IB/RoCE v1" for the old kind, and has no answer for an empty row."""
    try:
        return _text(path).removeprefix("IB/")
    except OSError:
        return ""


def _numa_node(sysfs: Path, device: str) -> int:
    try:
        return int(_text(sysfs / "class/infiniband" / device / "device/numa_node"))
    except (OSError, ValueError):
        return -1


def _text(path: Path) -> str:
    return path.read_text().strip()
