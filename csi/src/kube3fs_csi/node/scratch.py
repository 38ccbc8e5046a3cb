"""Who may have inline scratch volumes of a StorageCluster, and how much of it. Pure functions.

No ResourceQuota of Kubernetes counts inline volumes, and any restricted pod may name any cluster: so the
cluster says for whom its room is. What a pod has already it keeps, whatever the rules became since.
"""

from collections.abc import Iterable

from kube3fs_crds import ScratchPolicy, bytes_of
from kube3fs_csi.node.state import Published
from kube3fs_csi.serving.errors import Exhausted, OutOfRange, Precondition

EVERYBODY = ScratchPolicy(namespaces=["*"], max_per_node="999Pi")
"""Without an API server: whoever starts the node plugin by hand serves whom they like."""


def check(policy: ScratchPolicy | None, want: Published, others: Iterable[Published]) -> None:
    """Raises, and says what to change, unless `want` may be made beside `others`, the records of the node."""
    cluster, field = want.cluster, "spec.scratch of the StorageCluster"
    if policy is None:
        raise Precondition(
            f"StorageCluster {cluster} allows no scratch volumes: have its owner set spec.scratch, "
            "or use a claim of its StorageClass"
        )
    if not policy.allows(want.pod.namespace):
        raise Precondition(
            f"StorageCluster {cluster} allows no scratch volumes to namespace "
            f"{want.pod.namespace or '(unknown)'}: have its owner add it to spec.scratch.namespaces, "
            "or use a claim of its StorageClass"
        )
    try:
        total = bytes_of(policy.max_per_node)
        largest = bytes_of(policy.max_per_volume) if policy.max_per_volume else total
    except ValueError as error:
        raise Precondition(f"{field} {cluster} cannot be read: {error}") from error
    if want.size > largest:
        raise OutOfRange(
            f"a scratch volume of StorageCluster {cluster} may have {largest} bytes, {want.size} were asked "
            "for: ask for less, or have the cluster's owner raise spec.scratch.maxPerVolume"
        )
    taken = sum(other.size for other in of_cluster(others, cluster) if other.target != want.target)
    if want.size > total - taken:
        raise Exhausted(
            f"scratch volumes of StorageCluster {cluster} may have {total} bytes on a node, and have {taken} "
            f"here, {want.size} more were asked for: ask for less, wait for pods to end, or have the owner "
            "of the cluster raise spec.scratch.maxPerNode"
        )


def of_cluster(records: Iterable[Published], cluster: str) -> list[Published]:
    """The scratch volumes of a cluster."""
    return [record for record in records if record.kind == "scratch" and record.cluster == cluster]


def against_the_rules(policy: ScratchPolicy | None, records: Iterable[Published]) -> list[Published]:
    """Of the scratch volumes of a cluster, those of pods that could not have them now."""
    return [record for record in records if policy is None or not policy.allows(record.pod.namespace)]
