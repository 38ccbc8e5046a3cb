"""The cluster itself: what a node plugin does on its node reaches other pods, as on any node."""

import os
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
import pytest
from grpc_tools import protoc

from tests.e2e.kube import (
    SLEEP,
    Cluster,
    ExecFailed,
    Manifest,
    Namespace,
    privileged_pod,
    restricted_pod,
    wait_for,
)

NODE = "node-1"
DRIVER = "shm.e2e.kube3fs.io"
RESOURCE = "e2e.kube3fs.io/device"


def _host_path(name: str, path: str, propagation: str = "None") -> tuple[Manifest, Manifest]:
    """A hostPath volume and its mount at the same place."""
    volume = {"name": name, "hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    return volume, {"name": name, "mountPath": path, "mountPropagation": propagation}


@pytest.fixture
def plugin(cluster: Cluster, system_namespace: Namespace, tmp_path: Path) -> Iterator[Namespace]:
    """plugin.py runs on NODE, known to its kubelet as a CSI driver and as a device plugin."""
    protos = Path(os.environ["KUBE3FS_PROGRAMS"], "protos")
    known = Path(grpc_tools.__file__).parent / "_proto"
    command = [
        "protoc",
        f"-I{protos}",
        f"-I{known}",
        f"--python_out={tmp_path}",
        f"--grpc_python_out={tmp_path}",
    ]
    assert protoc.main([*command, *map(str, protos.glob("*/*.proto"))]) == 0
    volumes, mounts = zip(
        _host_path("kubelet", "/var/lib/kubelet", "Bidirectional"),
        _host_path("cdi", "/var/run/cdi"),
        _host_path("stubs", str(tmp_path)),
        _host_path("code", str(Path(__file__).parent)),
        strict=True,
    )
    # Restricted pods may use an inline volume of a driver that says so.
    restricted = {"security.openshift.io/csi-ephemeral-volume-profile": "restricted"}
    driver: Manifest = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": DRIVER, "labels": restricted},
        "spec": {"attachRequired": False, "podInfoOnMount": True, "volumeLifecycleModes": ["Ephemeral"]},
    }
    cluster.apply(driver)
    container = {"volumeMounts": mounts, "env": [{"name": "PYTHONPATH", "value": str(tmp_path)}]}
    script = str(Path(__file__).with_name("plugin.py"))
    system_namespace.apply(
        privileged_pod("plugin", "python3", script, nodeName=NODE, volumes=volumes, container=container)
    )
    csi_nodes = cluster.dynamic.resources.get(api_version="storage.k8s.io/v1", kind="CSINode")

    def known_to_the_kubelet() -> bool:
        drivers = csi_nodes.get(name=NODE).to_dict()["spec"].get("drivers") or []
        devices = cluster.core.read_node(NODE).status.allocatable.get(RESOURCE)
        assert any(d["name"] == DRIVER for d in drivers), f"CSINode {NODE} has {drivers}"
        assert devices == "1", f"node {NODE} has {devices} of {RESOURCE}"
        return True

    wait_for("the plugin known to the kubelet", known_to_the_kubelet)
    yield system_namespace
    cluster.delete(driver)


def test_inline_volume_is_the_pods_shared_memory(plugin: Namespace, namespace: Namespace) -> None:
    """An inline CSI volume at /dev/shm of a non-root pod is what the pod sees there, in every container."""
    shm = {"volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}
    volumes = [{"name": "shm", "csi": {"driver": DRIVER}}]
    pod = restricted_pod("user", *SLEEP, nodeName=NODE, container=shm, volumes=volumes)
    pod["spec"]["containers"].append({**pod["spec"]["containers"][0], "name": "second"})
    namespace.apply(pod)
    namespace.wait_ready("user")
    assert namespace.exec("user", "cat", "/dev/shm/pod", container="main") == "user"
    fields = "import os; s = os.statvfs('/dev/shm'); print(s.f_blocks * s.f_frsize >> 20, os.getuid())"
    assert namespace.exec("user", "python3", "-c", fields, container="main") == "16 1000\n"
    namespace.exec("user", "sh", "-c", "echo hello > /dev/shm/word", container="main")
    assert namespace.exec("user", "cat", "/dev/shm/word", container="second") == "hello\n"
    with pytest.raises(ExecFailed, match="No space left on device"):
        namespace.exec(
            "user", "dd", "if=/dev/zero", "of=/dev/shm/full", "bs=1M", "count=17", container="main"
        )
    namespace.delete(pod)
    namespace.wait_gone("user")
    assert "e2e-shm" not in plugin.exec("plugin", "cat", "/proc/self/mountinfo")


def test_device_reaches_the_container(plugin: Namespace, namespace: Namespace) -> None:
    """A device plugin that answers with a CDI name gives the container a device that it can open."""
    script = "import os; print(open('/dev/e2e', 'wb').write(b'abc'), os.environ['E2E_DEVICE'])"
    resources = {"resources": {"limits": {RESOURCE: "1"}}}
    namespace.apply(restricted_pod("user", "python3", "-c", script, container=resources))
    assert namespace.wait_done("user") == "3 one\n"


def test_bidirectional_mount_reaches_another_pod(system_namespace: Namespace) -> None:
    """What a privileged pod mounts below a Bidirectional volume appears in a pod that runs already."""
    place = "/var/lib/kubelet/e2e-shared"
    for name, make, propagation in (
        ("maker", privileged_pod, "Bidirectional"),
        ("reader", privileged_pod, "HostToContainer"),
    ):
        volume, mount = _host_path("shared", place, propagation)
        container = {"volumeMounts": [mount], **({"securityContext": {}} if name == "reader" else {})}
        system_namespace.apply(make(name, *SLEEP, nodeName=NODE, volumes=[volume], container=container))
    system_namespace.wait_ready("maker", "reader")
    script = f"mkdir -p {place}/point && mount -t tmpfs e2e {place}/point && echo here > {place}/point/file"
    system_namespace.exec("maker", "sh", "-c", script)
    assert system_namespace.exec("reader", "cat", f"{place}/point/file") == "here\n"
    system_namespace.exec("maker", "sh", "-c", f"umount {place}/point && rmdir {place}/point")
    with pytest.raises(ExecFailed, match="No such file"):
        system_namespace.exec("reader", "cat", f"{place}/point/file")
