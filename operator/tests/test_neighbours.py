"""One namespace's StorageClusters take nothing from another's: neither a node, nor a name, nor readiness."""

from typing import Any

import pytest

from kube3fs_crds import MAX_CLUSTERS, StorageCluster
from kube3fs_operator import render
from kube3fs_operator.placement import share
from kube3fs_operator.status import Attempt, status
from kube3fs_operator.views import ClusterKey

from .conftest import NOW, Make, world_of


def cluster(namespace: str, name: str, created: int = 0, **more: Any) -> Any:
    body = Make.cluster(name, path=f"/var/lib/kube3fs/{namespace}-{name}", created=created, **more)
    body["metadata"]["namespace"] = namespace
    return body


def condition(body: Any, kind: str, *others: Any, **reserved: str) -> Any:
    """A condition of the cluster, in a world with these other objects and names."""
    world = world_of([body, *others])
    object.__setattr__(world, "class_names", reserved)
    conditions = status(StorageCluster.model_validate(body), world, Attempt(), NOW).conditions
    return next(one for one in conditions if one.type == kind)


def test_too_many_clusters_are_cut_with_a_condition() -> None:
    """The StorageNode can be written; those left out say why, the others are served."""
    many = [cluster("greedy", f"c{number:03}", number // 5) for number in range(130)]
    world = world_of([*many, Make.node(), Make.storage_node()])
    served = share("node-a", world)
    assert len(served.clusters) == MAX_CLUSTERS
    assert served.crowded_out == {ClusterKey("greedy", "c128"), ClusterKey("greedy", "c129")}
    left = condition(many[-1], "NodesReady", *many[:-1], Make.node(), Make.storage_node())
    assert (left.status, left.reason) == ("False", "TooManyClusters")
    assert "ResourceQuota" in left.message


def test_a_namespace_with_many_clusters_keeps_nobody_out() -> None:
    """Each namespace gets its first before any gets its second, however late it comes."""
    many = [cluster("greedy", f"c{number:03}", number // 5) for number in range(130)]
    world = world_of([*many, cluster("modest", "late", 50), Make.node(), Make.storage_node()])
    assert ClusterKey("modest", "late") not in share("node-a", world).crowded_out


def test_a_cluster_with_volumes_is_never_crowded_out() -> None:
    """Data is served first, whoever has how many clusters."""
    many = [cluster("team", f"c{number:03}", number // 5) for number in range(130)]
    volume = Make.volume(cluster="c129")
    world = world_of([*many, volume, Make.node(), Make.storage_node()])
    assert share("node-a", world).crowded_out == {ClusterKey("team", "c127"), ClusterKey("team", "c128")}


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        pytest.param(None, True, id="default"),
        pytest.param("team.anything.else", True, id="begins with its namespace"),
        pytest.param("fast", True, id="reserved for it"),
        pytest.param("slow", False, id="reserved for another"),
        pytest.param("other.demo", False, id="another's default"),
        pytest.param("team", False, id="only the namespace"),
        pytest.param("teamx.demo", False, id="begins like its namespace"),
        pytest.param("standard", False, id="nobody's"),
    ],
)
def test_a_class_name_begins_with_the_namespace_or_is_reserved(name: str | None, allowed: bool) -> None:
    """Otherwise no class is made, and the cluster stalls with what to do."""
    body = cluster("team", "demo", **({"storageClassName": name} if name else {}))
    found = condition(
        body, "Stalled", Make.node(), Make.storage_node("node-a", "demo"), fast="team", slow="other"
    )
    assert (found.reason == "ClassNameNotReserved") is not allowed


@pytest.mark.parametrize("trace", ["class", "volume"])
def test_a_class_that_exists_stays_and_says_so(trace: str) -> None:
    """What an earlier version made is not taken from its users; a lost class is made again."""
    body = cluster("team", "demo", storageClassName="standard")
    there = Make.storage_class("standard", "demo") if trace == "class" else Make.volume()
    world = world_of([body, there, Make.node(), Make.storage_node("node-a", "demo")])
    model = StorageCluster.model_validate(body)
    assert render.may_have_class(model, world)
    assert render.classes(model, world)
    found = condition(body, "ClassesReady", Make.storage_class("standard", "demo"), Make.node())
    assert (found.status, found.reason) == ("True", "NameNotReserved")


def test_an_older_plugins_word_on_one_cluster_is_no_word_on_the_others() -> None:
    """It called the whole node not ready when one of its clusters was not."""
    node = Make.storage_node("node-a", "demo", ready="False")
    node["status"]["conditions"][0]["reason"] = "ClusterNotReady"
    found = condition(Make.cluster(), "NodesReady", Make.node(), node)
    assert (found.status, found.reason) == ("True", "AllReady")
    node["status"]["conditions"][0]["reason"] = "DaemonDown"
    assert condition(Make.cluster(), "NodesReady", Make.node(), node).reason == "PluginNotReady"
