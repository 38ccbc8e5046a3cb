"""The cluster, from within its namespaces: `python3 -m tests.cluster.inside STATE LISTENER STATUS`.

LISTENER is the file descriptor of a listening TCP socket of the machine's network, STATUS that of a pipe:
on it one line says `ready`, or what went wrong.
"""

import asyncio
import json
import os
import socket
import sys
from functools import partial
from pathlib import Path
from threading import Thread

from tests.cluster import components, node, pki
from tests.cluster.api import Api
from tests.cluster.gateway import serve
from tests.cluster.paths import MANIFESTS
from tests.cluster.shell import ClusterError, run
from tests.cluster.spec import API_PORT, FIRST, Spec, nodes
from tests.cluster.supervisor import Supervisor, as_init


def main() -> None:
    """Bring the cluster up, tell, and serve the machine's way in until killed."""
    spec = Spec.from_json(json.loads(Path(sys.argv[1], "spec.json").read_text()))
    listener = socket.socket(fileno=int(sys.argv[2]))
    status = int(sys.argv[3])
    try:
        programs = bring_up(spec)
    except ClusterError as error:
        os.write(status, f"{error}\n".encode())
        raise SystemExit(1) from None
    os.write(status, b"ready\n")
    os.close(status)
    Thread(target=programs.keep, args=[components.kubelet(spec, FIRST)], daemon=True).start()
    asyncio.run(serve(listener, FIRST.address, API_PORT))


def bring_up(spec: Spec) -> Supervisor:
    """Start everything; returns, with the first node's programs, when pods can run."""
    run(["hostname", FIRST.name], timeout=10)
    pki.make(spec)
    (spec.folder / "Corefile").write_text(components.corefile(spec))
    (spec.folder / "proxy.yaml").write_text(components.proxy_config(spec))
    node.first_network()
    others = nodes(spec)[1:]
    programs = Supervisor(spec)
    for other in others:
        programs.adopt(other.name, node.spawn(spec, other))
    node.routes(spec, FIRST)
    node.mounts(spec, FIRST)
    (spec.folder / "etcd").mkdir(mode=0o700)
    run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", spec.folder / "etcd"], timeout=10)
    programs.start(components.etcd(spec))
    programs.start(components.apiserver(spec))
    node.start(spec, FIRST, programs)
    programs.start(components.controller_manager(spec))
    programs.start(components.scheduler(spec))
    _apply_manifests(spec)
    programs.start(components.coredns(spec))
    api = Api(Path(components.kubeconfig_path(spec, "admin")))
    for member in nodes(spec):
        programs.wait(member.name, partial(api.node_is_ready, member.name), 90)
    for needed in ("serviceaccounts/default", "configmaps/kube-root-ca.crt"):
        programs.wait(needed, partial(api.exists, f"/api/v1/namespaces/default/{needed}"), 30)
    return programs


def _apply_manifests(spec: Spec) -> None:
    """What a distribution of Kubernetes installs: DNS and the CRDs of volume snapshots."""
    kubeconfig = components.kubeconfig_path(spec, "admin")
    kubectl = [str(spec.bin / "kubectl"), "--kubeconfig", kubeconfig, "apply", "--server-side"]
    snapshots = f"{spec.programs}/manifests/snapshot-crds"
    run([*kubectl, "-f", str(MANIFESTS), "-f", snapshots], timeout=60)


if __name__ == "__main__":
    sys.exit(as_init(main))
