"""The CDI spec that tells container runtimes what a device is (CNCF Container Device Interface 0.6)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kube3fs_csi.devices.discovery import Offered
from kube3fs_csi.names import RESOURCE_RDMA
from kube3fs_csi.node.state import write_atomically

FILE = "kube3fs.io-rdma.json"
_FOLDER = "/dev/infiniband"


def spec(devices: Sequence[Offered], connection_manager: bool) -> dict[str, Any]:
    """One CDI device for each RDMA device: its uverbs, and rdma_cm where the node has it."""
    common = [{"path": f"{_FOLDER}/rdma_cm", "permissions": "rw"}] if connection_manager else []
    return {
        "cdiVersion": "0.6.0",
        "kind": RESOURCE_RDMA,
        "devices": [
            {
                "name": device.name,
                "containerEdits": {
                    "deviceNodes": [{"path": f"{_FOLDER}/{device.uverbs}", "permissions": "rw"}, *common]
                },
            }
            for device in devices
        ],
    }


def write(folder: Path, devices: Sequence[Offered], dev: Path) -> None:
    """Makes the spec that of `devices`; without any there is none. `dev`: the node's /dev."""
    path = folder / FILE
    if not devices:
        path.unlink(missing_ok=True)
        return
    content = json.dumps(spec(devices, (dev / "infiniband/rdma_cm").exists()), indent=2).encode()
    if not path.exists() or path.read_bytes() != content:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content, sync=False)
