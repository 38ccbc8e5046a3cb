"""Pods by the hundred: what they had is gone with them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.kube import Cluster, Namespace, wait_for
from tests.e2e.kube3fs import CLASSES, claim, inline, installed, of_claim, pod
from tests.e2e.node import RUN, STATE, Process, nothing_left, plugin

WAVES, PODS = 8, 25
FDS = 10
"""How many more open files are no leak: connections come and go. One for each pod would be 175."""
MEMORY = 32 << 20
"""How many more resident bytes are no leak: 190 KiB for each pod. The C library pools 2 MiB for a thread."""


@pytest.fixture(scope="module", autouse=True)
def _kube3fs(cluster: Cluster) -> Iterator[None]:
    with installed(cluster):
        yield


def test_200_pods_leave_nothing(namespace: Namespace) -> None:
    """200 pods, 25 at a time, leave no mount, record or tmpfs, and cost the plugin no file and no memory."""
    namespace.apply(claim("data", CLASSES["directory"]))
    # The first wave fills pools and caches: the others are compared with it.
    _wave(namespace)
    processes, files = plugin(), _state()
    for _ in range(WAVES - 1):
        _wave(namespace)
    assert _state() == files
    wait_for("no file or memory leaks", partial(_no_more_than, processes))


def _wave(namespace: Namespace) -> None:
    """Pods that start together, are Ready, go together, and leave nothing."""
    names = [f"p{number}" for number in range(PODS)]
    volumes = {"/data": of_claim("data"), "/dev/shm": inline("shm", size="4Mi")}
    namespace.apply([pod(name, volumes) for name in names])
    namespace.wait_ready(*names, seconds=120)
    uids = [namespace.pod(name).metadata.uid for name in names]
    namespace.cluster.core.delete_collection_namespaced_pod(namespace.name)
    for name in names:
        namespace.wait_gone(name, seconds=120)
    for uid in uids:
        wait_for("nothing is left", partial(nothing_left, uid))


def _state() -> set[Path]:
    """The files that the plugin keeps on the node."""
    return {path for folder in (STATE, RUN) for path in folder.rglob("*")}


def _no_more_than(before: dict[str, Process]) -> bool:
    """The same processes, without a leak."""
    for name, now in plugin().items():
        assert now.pid == before[name].pid, f"{name} was started again"
        assert now.fds <= before[name].fds + FDS, (name, before[name], now)
        assert now.memory <= before[name].memory + MEMORY, (name, before[name], now)
    return True
