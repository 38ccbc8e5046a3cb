"""Fixtures of every end-to-end test: the cluster, a namespace of its own, a report on failure."""

import os
import re
import shutil
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kubernetes import client, config

from tests.api.kube import eventually, kubectl
from tests.e2e.kube import Cluster, Namespace, wait_for
from tests.e2e.release import CHART, release
from tests.e2e.report import report

__all__ = ["release"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster of `python3 -m tests.cluster`: never one that happens to be in somebody's KUBECONFIG."""
    if "KUBE3FS_CLUSTER" not in os.environ:
        pytest.exit("these tests run in a cluster of their own: `make test-cluster`, see CONTRIBUTING.md", 4)
    with config.new_client_from_config(os.environ["KUBECONFIG"]) as api:
        yield Cluster(api)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace of the test's own, under the *restricted* Pod Security level."""
    with new_namespace(cluster, "restricted") as namespace:
        yield namespace


@pytest.fixture
def system_namespace(cluster: Cluster) -> Iterator[Namespace]:
    """A namespace of the test's own in which privileged pods may run."""
    with new_namespace(cluster, "privileged") as namespace:
        yield namespace


@pytest.fixture
def restricted(namespace: Namespace) -> str:
    """The name of a namespace of the test's own, under the *restricted* Pod Security level."""
    return namespace.name


@pytest.fixture(scope="session")
def snapshots() -> None:
    """The snapshot CRDs and their controller, as the cluster's administrator installs them."""
    manifests = Path(shutil.which("helm") or "").parents[1] / "manifests"
    kubectl("apply", "--server-side", "-f", str(manifests / "snapshot-crds"))
    # The manifests name the release before; the sidecar's tag is that of the controller at hand.
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    tag = values["csi"]["controller"]["sidecars"]["snapshotter"]["tag"]
    for path in sorted((manifests / "snapshot-controller").iterdir()):
        text = re.sub(r"(/snapshot-controller:).*", rf"\g<1>{tag}", path.read_text())
        kubectl("apply", "-f", "-", stdin=text)
    pods = ("pod", "-n", "kube-system", "-l", "app.kubernetes.io/name=snapshot-controller")
    eventually(lambda: kubectl("get", *pods, "-o", "name"), bool)
    kubectl("wait", *pods, "--for=condition=Ready", "--timeout=55s")


@contextmanager
def new_namespace(cluster: Cluster, level: str) -> Iterator[Namespace]:
    """A new namespace with a Pod Security level; deleted afterwards, without waiting."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": level}
    cluster.core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name, labels=labels)))
    try:
        wait_for(
            "the namespace's service account",
            lambda: cluster.core.read_namespaced_service_account("default", name),
        )
        yield Namespace(cluster, name)
    finally:
        cluster.core.delete_namespace(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the cluster looks like to the report of a test that failed."""
    outcome = yield
    fixtures = getattr(item, "funcargs", {}).values()
    cluster = next(
        (
            f.cluster if isinstance(f, Namespace) else f
            for f in fixtures
            if isinstance(f, Cluster | Namespace)
        ),
        None,
    )
    if outcome.failed and outcome.when != "teardown" and cluster is not None:
        outcome.sections.append(("the cluster", report(cluster)))
    return outcome
