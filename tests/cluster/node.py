"""One node: its network, its mounts, containerd, kubelet and kube-proxy. Runs in the node's own namespaces.

`python3 -m tests.cluster.node SPEC NUMBER` is every node but the first; the first shares the control plane's
namespaces and is started by inside.py.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from tests.cluster import components, store
from tests.cluster.api import Api
from tests.cluster.paths import NODE_PLACES_IN_MEMORY, NODE_PLACES_ON_DISK
from tests.cluster.shell import UNSHARE, ClusterError, run
from tests.cluster.spec import FIRST, Node, Spec, nodes
from tests.cluster.supervisor import Supervisor, as_init

_LINK = "node0"
"""A node's way to the others: a bridge at the first node, one end of a link to it at the rest."""


def first_network() -> None:
    """The first node's network: the bridge that joins the nodes."""
    _ip("link", "add", _LINK, "type", "bridge")
    _up(FIRST)
    # The API server and the kubelet want a default route; nothing is behind it.
    _ip("route", "add", "default", "via", "10.98.0.254")


def spawn(spec: Spec, node: Node) -> subprocess.Popen[bytes]:
    """Start another node in namespaces of its own, below this one's, linked to the bridge here.

    Must run before this namespace's own mounts are made: the new one starts with a copy of them.
    """
    argv = [*UNSHARE, sys.executable, "-m", __name__, spec.state, str(node.number)]
    log = spec.folder / "logs" / f"{node.name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
    own = Path("/proc/self/ns/net").readlink()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{process.pid}/ns/net").readlink() == own:
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(f"{node.name} got no namespaces: {log.read_text().strip()}")
        time.sleep(0.01)
    _ip("link", "add", node.name, "type", "veth", "peer", "name", _LINK, "netns", str(process.pid))
    _ip("link", "set", node.name, "master", _LINK, "up")
    assert process.stdin is not None
    process.stdin.close()  # what the node waits for: its link is there
    return process


def routes(spec: Spec, node: Node) -> None:
    """To the pods of the other nodes."""
    for other in nodes(spec):
        if other != node:
            _ip("route", "add", other.pods, "via", other.address)


def mounts(spec: Spec, node: Node) -> None:
    """Give this namespace its own /var/lib/kubelet and the other folders that belong to one node."""
    folder = spec.folder / node.name
    for place in NODE_PLACES_ON_DISK:
        own = folder / Path(place).name
        own.mkdir(parents=True)
        run(["mount", "--bind", own, place], timeout=10)
    # Images are unpacked in memory: a shared disk takes seconds to write them, and again to forget them.
    (folder / "containerd").mkdir()
    for place in (*NODE_PLACES_IN_MEMORY, str(folder / "containerd")):
        run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", place], timeout=10)
    # What a CSI driver mounts reaches the kubelet and other pods, file systems for data reach the driver.
    for place in ("/var/lib/kubelet", "/var/lib/kube3fs"):
        run(["mount", "--make-rshared", place], timeout=10)


def start(spec: Spec, node: Node, programs: Supervisor) -> None:
    """Start the node's programs, as soon as each can work; returns when all run."""
    folder = spec.folder / node.name
    (folder / "cni").mkdir()
    (folder / "cni" / "10-pods.conflist").write_text(components.cni_config(spec, node))
    (folder / "containerd.toml").write_text(components.containerd_config(spec, node))
    (folder / "kubelet.yaml").write_text(components.kubelet_config(spec, node))
    store.use(Path(spec.store), folder / "containerd")
    programs.start(components.containerd(spec, node))
    api = Api(Path(components.kubeconfig_path(spec, node.name)))
    programs.wait("kube-apiserver", api.ready, 90)
    programs.start(components.kubelet(spec, node))
    programs.start(components.proxy(spec, node))


def _up(node: Node) -> None:
    _ip("link", "set", "lo", "up")
    _ip("address", "add", f"{node.address}/24", "dev", _LINK)
    _ip("link", "set", _LINK, "up")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")


def _ip(*argv: str) -> None:
    run(
        ["ip", *argv],
        timeout=10,
        advice="this kernel must offer network namespaces with bridges and veth links",
    )


def main() -> None:
    """Be one node other than the first, until killed."""
    spec = Spec.from_json(json.loads(Path(sys.argv[1], "spec.json").read_text()))
    node = Node(int(sys.argv[2]))
    sys.stdin.read()  # ends when the link to the other nodes is there
    run(["hostname", node.name], timeout=10)
    _up(node)
    _ip("route", "add", "default", "via", FIRST.address)
    routes(spec, node)
    mounts(spec, node)
    programs = Supervisor(spec, f"{node.name}-")
    start(spec, node, programs)
    programs.keep(components.kubelet(spec, node))


if __name__ == "__main__":
    sys.exit(as_init(main))
