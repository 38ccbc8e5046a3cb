"""Volumes in pods under the restricted Pod Security level, on btrfs and on a plain directory."""

from collections.abc import Iterator

import pytest

from tests.e2e.kube import Cluster, ExecFailed, Namespace, wait_for
from tests.e2e.kube3fs import CLASSES, claim, events, inline, installed, objects, of_claim, pod

SNAPSHOT = "snapshot.storage.k8s.io/v1"


@pytest.fixture(scope="module", autouse=True)
def _kube3fs(cluster: Cluster) -> Iterator[None]:
    with installed(cluster):
        yield


@pytest.fixture(params=list(CLASSES))
def storage_class(request: pytest.FixtureRequest) -> str:
    return CLASSES[request.param]


def shell(namespace: Namespace, name: str, script: str) -> str:
    return namespace.exec(name, "sh", "-c", script)


def test_a_restricted_pod_writes_and_reads(namespace: Namespace, storage_class: str) -> None:
    """A pod of uid 1000 writes by its group, sees 3fs-virt, and the next pod reads what it wrote."""
    namespace.apply([claim("data", storage_class), pod("writer", {"/data": of_claim("data")})])
    namespace.wait_ready("writer")
    assert (
        shell(namespace, "writer", "stat -f -c %T /data; ls -d /data/3fs-virt").split()[1] == "/data/3fs-virt"
    )
    shell(namespace, "writer", "echo kept > /data/file && mkdir /data/folder")
    assert shell(namespace, "writer", "stat -c '%u %g' /data/file") == "1000 1000\n"
    assert "fuse.hf3fs" in shell(namespace, "writer", "grep ' /data ' /proc/self/mounts")
    namespace.delete(pod("writer", {}))
    namespace.wait_gone("writer")
    namespace.apply(pod("reader", {"/data": of_claim("data")}))
    namespace.wait_ready("reader")
    assert shell(namespace, "reader", "cat /data/file") == "kept\n"


def test_shared_memory_has_its_size(namespace: Namespace) -> None:
    """/dev/shm is a tmpfs of the size asked for, which ends where it should, and nobody else's."""
    namespace.apply([pod(name, {"/dev/shm": inline("shm", size="16Mi")}) for name in ("one", "other")])
    namespace.wait_ready("one", "other")
    assert shell(namespace, "one", "df -B1 --output=size /dev/shm | tail -1").strip() == str(16 << 20)
    shell(namespace, "one", "echo secret > /dev/shm/mine")
    assert shell(namespace, "other", "ls /dev/shm") == ""
    with pytest.raises(ExecFailed, match="No space left"):
        shell(namespace, "one", "head -c 17M /dev/zero > /dev/shm/much")


def test_the_client_library_is_there(namespace: Namespace) -> None:
    """The library can be loaded from the inline volume, and not be changed."""
    namespace.apply(pod("client", {"/opt/client": inline("client")}))
    namespace.wait_ready("client")
    load = "import ctypes, glob; ctypes.CDLL(glob.glob('/opt/client/**/libusrbio.so', recursive=True)[0])"
    namespace.exec("client", "python3", "-c", load)
    assert (
        "ro,"
        in shell(namespace, "client", "grep ' - tmpfs kube3fs-client ' /proc/self/mountinfo").split()[-1]
    )


def test_a_volume_stops_at_its_size_and_grows_online(namespace: Namespace, cluster: Cluster) -> None:
    """On btrfs writing ends at the size, which `df` shows; a bigger claim lets it go on without a restart."""
    namespace.apply([claim("data", CLASSES["btrfs"], "32Mi"), pod("p", {"/data": of_claim("data")})])
    namespace.wait_ready("p")
    size = "df -B1 --output=size /data | tail -1"
    assert int(shell(namespace, "p", size)) == 32 << 20
    fill = "dd if=/dev/urandom of=/data/big bs=1M count=40 conv=fsync 2>&1"
    with pytest.raises(ExecFailed, match=r"Disk quota exceeded|No space left"):
        shell(namespace, "p", fill)
    namespace.apply(claim("data", CLASSES["btrfs"], "96Mi"))

    def grown() -> bool:
        found = cluster.core.read_namespaced_persistent_volume_claim("data", namespace.name)
        assert found.status.capacity["storage"] == "96Mi", found.status
        return True

    wait_for("the claim has grown", grown)
    assert int(shell(namespace, "p", size)) == 96 << 20
    shell(namespace, "p", fill)


def test_snapshot_restore_and_clone(namespace: Namespace, cluster: Cluster, storage_class: str) -> None:
    """A snapshot keeps what was there; claims from it and from the volume itself start with their content."""
    namespace.apply([claim("data", storage_class), pod("p", {"/data": of_claim("data")})])
    namespace.wait_ready("p")
    shell(namespace, "p", "echo before > /data/file && sync")
    namespace.apply(
        {
            "apiVersion": SNAPSHOT,
            "kind": "VolumeSnapshot",
            "metadata": {"name": "snap"},
            "spec": {
                "volumeSnapshotClassName": storage_class,
                "source": {"persistentVolumeClaimName": "data"},
            },
        }
    )
    snapshots = cluster.dynamic.resources.get(api_version=SNAPSHOT, kind="VolumeSnapshot")

    def usable() -> bool:
        status = snapshots.get(name="snap", namespace=namespace.name).to_dict().get("status") or {}
        assert status.get("readyToUse"), status
        return True

    wait_for("the snapshot is ready", usable)
    shell(namespace, "p", "echo after > /data/file && sync")
    restore = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "snap"}
    clone = {"kind": "PersistentVolumeClaim", "name": "data"}
    namespace.apply(
        [
            claim("restored", storage_class, dataSource=restore),
            claim("cloned", storage_class, dataSource=clone),
            pod("q", {"/restored": of_claim("restored"), "/cloned": of_claim("cloned")}),
        ]
    )
    namespace.wait_ready("q", seconds=120)
    assert shell(namespace, "q", "cat /restored/file /cloned/file") == "before\nafter\n"


def test_a_pod_with_users_of_its_own(namespace: Namespace) -> None:
    """A pod with `hostUsers: false` writes to its volume and its shared memory as its own user."""
    volumes = {"/data": of_claim("data"), "/dev/shm": inline("shm", size="16Mi")}
    namespace.apply([claim("data", CLASSES["directory"]), pod("p", volumes, hostUsers=False)])
    namespace.wait_ready("p")
    assert shell(namespace, "p", "echo x > /data/file && stat -c %u /data/file") == "1000\n"
    assert shell(namespace, "p", "echo x > /dev/shm/file && stat -c %u /dev/shm/file") == "1000\n"


def test_a_read_only_volume_cannot_be_written(namespace: Namespace, storage_class: str) -> None:
    """`readOnly` of the pod's volume holds."""
    namespace.apply([claim("data", storage_class), pod("p", {"/data": of_claim("data", read_only=True)})])
    namespace.wait_ready("p")
    with pytest.raises(ExecFailed, match="Read-only file system"):
        shell(namespace, "p", "touch /data/file")


def test_a_scratch_volume_goes_with_its_pod(namespace: Namespace, cluster: Cluster) -> None:
    """An inline scratch volume has space of its own while the pod lives, and none after."""
    name = CLASSES["btrfs"].replace(".", "/", 1)
    namespace.apply(pod("p", {"/scratch": inline("scratch", size="64Mi", cluster=name)}))
    namespace.wait_ready("p")
    shell(namespace, "p", "echo x > /scratch/file")
    namespace.delete(pod("p", {}))
    namespace.wait_gone("p")


def test_deleting_the_claim_deletes_the_volume(
    namespace: Namespace, cluster: Cluster, storage_class: str
) -> None:
    """Without its claim a volume is gone: no StorageVolume stays."""
    namespace.apply([claim("data", storage_class), pod("p", {"/data": of_claim("data")})])
    namespace.wait_ready("p")
    found = cluster.core.read_namespaced_persistent_volume_claim("data", namespace.name)
    namespace.delete(pod("p", {}))
    namespace.wait_gone("p")
    namespace.delete(claim("data", storage_class))
    wait_for(
        "the StorageVolume is gone",
        lambda: (
            found.spec.volume_name not in {one.metadata.name for one in objects(cluster, "StorageVolume")}
        ),
    )


@pytest.mark.parametrize(
    ("volume", "sentence"),
    [
        pytest.param(
            inline("shm", size="lots"), "is no quantity of bytes; write one such as 8Gi", id="no quantity"
        ),
        pytest.param(
            inline("shm", size="100Ti"), "ask for less, or run the pod on a larger node", id="too much"
        ),
        pytest.param(
            inline("disk"), "set it in the inline volume to shm, client, scratch", id="unknown kind"
        ),
        pytest.param(
            inline("scratch", size="1Mi", cluster="no/such"), "does not serve", id="unknown cluster"
        ),
    ],
)
def test_bad_inline_volumes_are_explained(
    namespace: Namespace, cluster: Cluster, volume: dict[str, object], sentence: str
) -> None:
    """What is wrong with a volume stands in an event of the pod, with what to change."""
    namespace.apply(pod("p", {"/v": volume}))
    wait_for("the event", lambda: sentence in events(cluster, namespace.name))


def test_block_volumes_are_refused_on_the_claim(namespace: Namespace, cluster: Cluster) -> None:
    """A claim that cannot be met says why in an event."""
    namespace.apply([claim("data", CLASSES["directory"], volumeMode="Block"), device_pod()])
    wait_for("the event", lambda: "use volumeMode: Filesystem" in events(cluster, namespace.name))


def device_pod() -> dict[str, object]:
    manifest = pod("p", {"/unused": of_claim("data")})
    container = manifest["spec"]["containers"][0]
    container["volumeDevices"] = [{"name": "v0", "devicePath": "/dev/block"}]
    del container["volumeMounts"]
    return manifest
