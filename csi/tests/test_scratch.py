"""Who may have scratch volumes, how much, and what a node says of those that the rules do not hold."""

from pathlib import Path

import grpc
import pytest

from kube3fs_crds import RdmaStatus, ScratchPolicy, StorageNode, now
from kube3fs_csi.agent.report import cluster_statuses, node_status, scratch_conditions
from kube3fs_csi.backends.choose import open_root
from kube3fs_csi.node import scratch
from kube3fs_csi.node.clusters import Served, Wanted
from kube3fs_csi.node.sessions import DaemonState
from kube3fs_csi.node.state import Pod, Published
from kube3fs_csi.serving.errors import CsiError

MIB = 1 << 20
POLICY = ScratchPolicy(namespaces=["team", "lab"], max_per_node="10Mi", max_per_volume="4Mi")


def volume(name: str, size: int, namespace: str = "team", cluster: str = "ns/fast") -> Published:
    return Published(
        volume_id=name,
        target=Path(f"/pods/{name}/mount"),
        kind="scratch",
        pod=Pod(key=name, namespace=namespace, name=name),
        cluster=cluster,
        size=size,
    )


HAS = [volume("a", 4 * MIB), volume("b", 3 * MIB), volume("c", 4 * MIB, cluster="ns/other")]


def test_what_is_allowed_passes() -> None:
    """A namespace that is named, or any where all are; up to the last byte. Other clusters do not count."""
    scratch.check(POLICY, volume("new", 3 * MIB), HAS)
    scratch.check(POLICY, volume("a", 4 * MIB), HAS)
    scratch.check(scratch.EVERYBODY, volume("new", 1 << 50, namespace=""), HAS)


@pytest.mark.parametrize(
    ("policy", "want", "code", "sentence"),
    [
        pytest.param(None, volume("n", 1), "FAILED_PRECONDITION", "set spec.scratch", id="no rules"),
        pytest.param(
            POLICY,
            volume("n", 1, "red"),
            "FAILED_PRECONDITION",
            "spec.scratch.namespaces",
            id="other namespace",
        ),
        pytest.param(POLICY, volume("n", 1, ""), "FAILED_PRECONDITION", "unknown", id="no pod information"),
        pytest.param(POLICY, volume("n", 5 * MIB), "OUT_OF_RANGE", "maxPerVolume", id="too large"),
        pytest.param(
            POLICY, volume("n", 4 * MIB), "RESOURCE_EXHAUSTED", "maxPerNode", id="together too much"
        ),
        pytest.param(
            ScratchPolicy(namespaces=["*"], max_per_node="1e99999999"),
            volume("n", 1),
            "FAILED_PRECONDITION",
            "no quantity",
            id="rules that cannot be read",
        ),
    ],
)
def test_what_is_not_allowed_says_what_to_change(
    policy: ScratchPolicy | None, want: Published, code: str, sentence: str
) -> None:
    """With the code, and the field that the cluster's owner would have to change."""
    with pytest.raises(CsiError, match=sentence) as refused:
        scratch.check(policy, want, HAS)
    assert refused.value.code is grpc.StatusCode[code]


def test_a_node_counts_scratch_volumes_and_says_what_is_not_held(tmp_path: Path) -> None:
    """Sum and number for each cluster; conditions for older volumes, and for sizes without quota."""
    root = tmp_path / "root"
    backend = open_root(root, [tmp_path])
    served = {
        "ns/fast": Served(root, backend, space=backend.space()),
        "ns/bad": Served(Path("/bad"), reason="FolderUnusable", message="no such disk"),
    }
    wanted = {"ns/fast": Wanted(root, POLICY), "ns/bad": Wanted(Path("/bad"))}
    node = StorageNode.model_validate({"metadata": {"name": "n", "generation": 3}})
    published = [volume("a", 4 * MIB), volume("b", 3 * MIB, namespace="red")]
    status = node_status(
        node,
        cluster_statuses(served, published),
        scratch_conditions(node, wanted, served, published, now()),
        DaemonState(True, "", None),
        RdmaStatus(),
        now(),
    )
    bad, fast = status.clusters
    assert (fast.scratch_bytes, fast.scratch_volumes, fast.ready) == (7 * MIB, 2, True)
    assert (bad.scratch_bytes, bad.ready, bad.reason) == (0, False, "FolderUnusable")
    found = {one.type: (one.status, one.reason) for one in status.conditions}
    assert found == {
        "Ready": ("True", "Serving"),
        "ClustersReady": ("False", "FolderUnusable"),
        "MountsServed": ("True", "AllServed"),
        "StorageAnswers": ("True", "Answers"),
        "ScratchAllowed": ("False", "OlderThanTheRules"),
        "ScratchSizesEnforced": ("False", "NoQuota"),
    }
    messages = " ".join(one.message for one in status.conditions)
    assert "ns/bad: no such disk" in messages
    assert "1 of ns/fast" in messages


def test_sums_that_are_more_than_can_be_said_are_the_most_that_can() -> None:
    """Scratch volumes from before the rules may have had any size: the node reports all the same."""
    published = [volume("a", 1 << 62), volume("b", 1 << 62)]
    (fast,) = cluster_statuses({"ns/fast": Served(Path("/fast"))}, published)
    assert (fast.scratch_bytes, fast.scratch_volumes) == (1 << 62, 2)
