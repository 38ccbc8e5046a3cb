"""Both processes of the driver, with a stand-in API server and the real usrbiod."""

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc

from csikit.apiserver import ApiServer, Body
from csikit.daemon import Daemon
from csikit.waiting import eventually
from kube3fs_csi.node import mounts
from kube3fs_csi.serving.server import is_listening

NODE = "node-a"
CLUSTER = "storage/fast"


class Driver:
    """A node and a controller below `folder`. Both are processes of their own, as in a cluster."""

    def __init__(self, folder: Path, api: ApiServer) -> None:
        self.folder = folder
        self.api = api
        self.data = folder / "data"
        self.kubelet = folder / "kubelet"
        self.daemon = Daemon(folder)
        self.controller_socket = folder / "controller.sock"
        self.node_socket = self.kubelet / "plugins/csi.kube3fs.io/csi.sock"
        self.log = folder / "driver.log"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self) -> None:
        """Starts everything, and returns when the node serves the cluster."""
        self.data.mkdir(exist_ok=True)
        for folder in ("pods", "plugins_registry", "device-plugins"):
            (self.kubelet / folder).mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self.daemon.start)
        await self.api.put("nodes", {"metadata": {"name": NODE}})
        await self.api.put("storageclusters", cluster())
        await self.api.put("storagenodes", storage_node(self.data))
        await self.start_node()
        await self.start_controller()
        await eventually(self.serves)

    async def start_node(self, *more: str) -> None:
        """Starts the node plugin."""
        options = {
            "--node-name": NODE,
            "--namespace": "kube3fs-system",
            "--kubelet-dir": self.kubelet,
            "--usrbiod": self.daemon.socket,
            "--data-dir": self.data,
            "--max-shm-bytes": 1 << 30,
            "--health-port": 0,
        }
        self._start("node", "--no-rdma", *(f"{key}={value}" for key, value in options.items()), *more)
        await eventually(lambda: is_listening(self.node_socket))

    async def start_controller(self) -> None:
        """Starts the controller plugin."""
        self._start("controller", "--endpoint", str(self.controller_socket), "--health-port", "0")
        await eventually(lambda: is_listening(self.controller_socket))

    def serves(self) -> bool:
        """Whether the node has reported that it serves the cluster."""
        node = self.api.get("storagenodes", NODE)
        clusters = (node or {}).get("status", {}).get("clusters", [])
        return any(one["ready"] for one in clusters)

    def kill(self, name: str) -> None:
        """SIGKILL, and reaps."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def rss(self, name: str) -> int:
        """Resident bytes of a process."""
        fields = Path(f"/proc/{self._processes[name].pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in fields if line.startswith("VmRSS:"))

    def cpu_seconds(self, name: str) -> float:
        """CPU time that a process has used."""
        fields = Path(f"/proc/{self._processes[name].pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def fd_limits(self, name: str) -> tuple[int, int]:
        """How many fds a process may have open: soft and hard limit."""
        return resource.prlimit(self._processes[name].pid, resource.RLIMIT_NOFILE)

    def open_fds(self, name: str) -> int:
        """Fds that a process has open."""
        return len(list(Path(f"/proc/{self._processes[name].pid}/fd").iterdir()))

    def close(self) -> None:
        """Ends everything, and unmounts what is left."""
        for name in list(self._processes):
            self.kill(name)
        self.daemon.kill()
        for mount in reversed(self.mounted()):
            mounts.unmount(mount)

    def mounted(self) -> list[Path]:
        """Mounts below the kubelet's folder."""
        return [mount.path for mount in mounts.table() if self.kubelet in mount.path.parents]

    def _start(self, name: str, *arguments: str) -> None:
        kubeconfig = self.api.kubeconfig(self.folder / "kubeconfig")
        argv = [sys.executable, "-m", "kube3fs_csi", name, "--kubeconfig", str(kubeconfig), *arguments]
        with self.log.open("ab") as log:
            self._processes[name] = subprocess.Popen(argv, stderr=log)


@contextlib.asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Driver]:
    """A driver that is up."""
    async with ApiServer().running() as api:
        driver = Driver(folder, api)
        try:
            await driver.start()
            yield driver
        finally:
            driver.close()


@contextlib.contextmanager
def channel(socket: Path) -> Iterator[grpc.aio.Channel]:
    """A client of a socket. gRPC closes it with the event loop."""
    yield grpc.aio.insecure_channel(f"unix://{socket}")


def cluster(ready: str = "True") -> Body:
    """A StorageCluster as the operator leaves it."""
    namespace, name = CLUSTER.split("/")
    condition = {
        "type": "Ready", "status": ready, "reason": "Test", "message": "as the test wants it",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    return {
        "metadata": {"namespace": namespace, "name": name},
        "spec": {"engine": {"embedded": {"path": "/unused"}}},
        "status": {"conditions": [condition]},
    }


def storage_node(data: Path) -> Body:
    """A StorageNode as the operator leaves it."""
    namespace, name = CLUSTER.split("/")
    share = {"namespace": namespace, "name": name, "path": str(data)}
    return {"metadata": {"name": NODE}, "spec": {"clusters": [share]}}
