"""kube3fs in the test cluster: installed by its chart, with StorageClusters on two kinds of file system."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests.e2e.kube import Cluster, Manifest, restricted_pod, wait_for

CHART = Path(__file__).parents[2] / "charts/kube3fs"
SYSTEM = "kube3fs-system"
NODE = "node-1"
"""The node whose mount namespace the tests run in; btrfs is there only."""
DATA = Path("/var/lib/kube3fs")
CLASSES = {"directory": f"{SYSTEM}.directory", "btrfs": f"{SYSTEM}.btrfs"}
"""StorageClass by kind of data root."""
_SYSFS = DATA / "sysfs"
_INFINIBAND = Path("/dev/infiniband")
_IMAGE = DATA / "btrfs.img"
_IMAGE_BYTES = 1 << 30

# The API server knows snapshots already; who carries them out is the cluster's business, not the chart's.
_SNAPSHOT_CONTROLLER = Path(os.environ.get("KUBE3FS_PROGRAMS", "")) / "manifests/snapshot-controller"


@contextmanager
def installed(cluster: Cluster) -> Iterator[None]:
    """The chart, installed and ready, and both StorageClusters."""
    _make_btrfs()
    _kubectl("apply", "-f", str(_SNAPSHOT_CONTROLLER))
    _use_built_snapshot_controller()
    _make_card()
    values = f"csi.controller.replicas=1,operator.replicas=1,csi.node.extraArgs[0]=--sysfs={_SYSFS}"
    _helm("upgrade", "--install", "kube3fs", str(CHART), "-n", SYSTEM, "--create-namespace", "--set", values)
    _kubectl("label", "--overwrite", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=privileged")
    for name in ("daemonset/kube3fs-csi-node", "deploy/kube3fs-csi-controller", "deploy/kube3fs-operator"):
        _kubectl("-n", SYSTEM, "rollout", "status", name, "--timeout=180s", seconds=200)
    for name in CLASSES:
        cluster.apply(storage_cluster(name, f"{DATA}/{name}"), SYSTEM)
    for name in CLASSES:
        wait_for(f"StorageCluster {name} Ready", partial(_is_ready, cluster, name), 120)
    yield


def storage_cluster(name: str, path: str) -> Manifest:
    """A StorageCluster of the embedded engine on `NODE`, with scratch volumes for all."""
    engine = {"embedded": {"path": path, "nodeSelector": {"kubernetes.io/hostname": NODE}}}
    return {
        "apiVersion": "kube3fs.io/v1alpha1",
        "kind": "StorageCluster",
        "metadata": {"name": name},
        "spec": {"engine": engine, "scratch": {"namespaces": ["*"], "maxPerNode": "10Gi"}},
    }


def claim(name: str, storage_class: str, size: str = "64Mi", **spec: Any) -> Manifest:
    """A PersistentVolumeClaim."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": storage_class,
            "resources": {"requests": {"storage": size}},
            **spec,
        },
    }


def inline(kind: str, **attributes: str) -> Manifest:
    """An inline volume of our driver."""
    named = {f"csi.kube3fs.io/{key}": value for key, value in attributes.items()}
    return {"csi": {"driver": "csi.kube3fs.io", "volumeAttributes": {"csi.kube3fs.io/kind": kind, **named}}}


def pod(name: str, mounts: dict[str, Manifest], *command: str, **spec: Any) -> Manifest:
    """A restricted pod on `NODE` with volumes by mount path. It sleeps if it has no command."""
    volumes = [{"name": f"v{number}", **source} for number, source in enumerate(mounts.values())]
    at = [{"name": f"v{number}", "mountPath": path} for number, path in enumerate(mounts)]
    container = {"volumeMounts": at, **spec.pop("container", {})}
    here = {"kubernetes.io/hostname": NODE}
    argv = command or ("sleep", "infinity")
    return restricted_pod(name, *argv, volumes=volumes, container=container, nodeSelector=here, **spec)


def of_claim(name: str, read_only: bool = False) -> Manifest:
    """A volume of a pod, from a claim."""
    return {"persistentVolumeClaim": {"claimName": name, "readOnly": read_only}}


_KILL = """
import os, pathlib, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    try:
        argv = (process / "cmdline").read_bytes().split(bytes(1))
    except OSError:
        continue
    if sys.argv[1].encode() in argv and sys.argv[2].encode() in argv and "-c" not in map(bytes.decode, argv):
        os.kill(int(process.name), 9)
"""
PLUGIN_ARGV = {"csi-node": ("kube3fs_csi", "node"), "usrbiod": ("usrbiod", "daemon")}
"""What is in the command line of the processes of the node plugin, by container."""


def kill(container: str) -> None:
    """SIGKILL to the process of a container of NODE's plugin, from beside it: the pod sees the node's."""
    argv = ["kubectl", "-n", SYSTEM, "exec", _plugin_pod(), "-c", "csi-node", "--", "python3", "-c", _KILL]
    # It may kill what runs it.
    subprocess.run([*argv, *PLUGIN_ARGV[container]], capture_output=True, timeout=30, check=False)


def _plugin_pod() -> str:
    where = ["-l", "app.kubernetes.io/component=csi-node", "--field-selector", f"spec.nodeName={NODE}"]
    argv = ["kubectl", "-n", SYSTEM, "get", "pod", *where, "-o", "name"]
    return subprocess.run(argv, capture_output=True, timeout=30, check=True, text=True).stdout.split()[0]


def objects(cluster: Cluster, kind: str) -> list[Any]:
    """All objects of a kind of ours."""
    return list(cluster.dynamic.resources.get(api_version="kube3fs.io/v1alpha1", kind=kind).get().items)


def events(cluster: Cluster, namespace: str) -> str:
    """What the events of a namespace say."""
    return "\n".join(event.message or "" for event in cluster.core.list_namespaced_event(namespace).items)


def _is_ready(cluster: Cluster, name: str) -> bool:
    resource = cluster.dynamic.resources.get(api_version="kube3fs.io/v1alpha1", kind="StorageCluster")
    status = resource.get(name=name, namespace=SYSTEM).to_dict().get("status", {})
    ready = [one for one in status.get("conditions", []) if one["type"] == "Ready"]
    assert ready, "no condition Ready"
    assert ready[0]["status"] == "True", ready[0]["message"]
    return True


def _make_btrfs() -> None:
    root = DATA / "btrfs"
    if root.is_mount():
        return
    root.mkdir(exist_ok=True)
    with _IMAGE.open("wb") as image:
        image.truncate(_IMAGE_BYTES)
    subprocess.run(["mkfs.btrfs", "-q", str(_IMAGE)], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", str(_IMAGE), str(root)], check=True)


def _make_card() -> None:
    """A stand-in for an RDMA card: sysfs as Linux lays it out, and a device that reads like /dev/zero."""
    device = _SYSFS / "class/infiniband/mlx5_0"
    for name, content in {
        "device/numa_node": "0",
        "ports/1/state": "4: ACTIVE",
        "ports/1/link_layer": "InfiniBand",
        "ports/1/gids/0": "fe80:0000:0000:0000:506b:4bff:fe4f:b2d1",
    }.items():
        (device / name).parent.mkdir(parents=True, exist_ok=True)
        (device / name).write_text(f"{content}\n")
    verbs = _SYSFS / "class/infiniband_verbs/uverbs0"
    verbs.mkdir(parents=True, exist_ok=True)
    (verbs / "ibdev").write_text("mlx5_0\n")
    uverbs = _INFINIBAND / "uverbs0"
    if not uverbs.exists():
        os.mknod(uverbs, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        uverbs.chmod(0o666)


def _use_built_snapshot_controller() -> None:
    """The manifest names the release before the one that was built."""
    image = "snapshot-controller=registry.k8s.io/sig-storage/snapshot-controller:v8.7.0"
    _kubectl("--namespace", "kube-system", "set", "image", "deployment/snapshot-controller", image)


def _helm(*arguments: str) -> None:
    subprocess.run(["helm", *arguments], check=True, capture_output=True, timeout=120)


def _kubectl(*arguments: str, seconds: float = 60) -> str:
    done = subprocess.run(
        ["kubectl", *arguments], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
