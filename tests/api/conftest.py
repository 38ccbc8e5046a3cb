"""Tests of what the API server itself does with our types and policies, and of the operator as a process.

They need an API server and nothing else of ours: `make test-api` brings one up.
"""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from .kube import Refused, create, eventually, get, kubectl

ROOT = Path(__file__).parents[2]
SYSTEM = "kube3fs-system"
POLICY = "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"


@pytest.fixture(scope="session", autouse=True)
def types() -> None:
    """Our CRDs, served."""
    assert "KUBECONFIG" in os.environ, "run these tests with make test-api"
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / "crds/manifests"))
    kubectl("wait", "--for=condition=Established", "crd", "-l", "app.kubernetes.io/part-of=kube3fs")


def rendered(*templates: str, **values: str) -> str:
    """Templates of the chart, as release kube3fs in kube3fs-system."""
    return subprocess.run(
        [
            *("helm", "template", "kube3fs", str(ROOT / "charts/kube3fs"), "-n", SYSTEM, "-a", POLICY),
            *(argument for name in templates for argument in ("-s", f"templates/{name}.yaml")),
            *(argument for name, value in values.items() for argument in ("--set", f"{name}={value}")),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


@pytest.fixture(scope="session")
def policies() -> None:
    """The chart's policies of injection, in force."""
    kubectl("apply", "-f", "-", stdin=rendered("admission/inject", "admission/validate"))

    def refused() -> bool:
        try:
            labels = '{"kube3fs.io/inject":"maybe"}'
            kubectl(
                "run",
                "probe",
                "--image=none",
                "--dry-run=server",
                f'--overrides={{"metadata":{{"labels":{labels}}}}}',
            )
        except Refused as error:
            return "means nothing" in str(error)
        return False

    eventually(refused, bool)
    eventually(_is_told_of_workloads, bool)


def _is_told_of_workloads() -> bool:
    template = {
        "metadata": {"labels": {"app": "x", "kube3fs.io/inject": "maybe"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "none"}]},
    }
    seen = []
    for kind, spec in (
        ("Job", {"template": template}),
        ("CronJob", {"schedule": "0 0 * * *", "jobTemplate": {"spec": {"template": template}}}),
    ):
        body = {
            "apiVersion": "batch/v1",
            "kind": kind,
            "metadata": {"name": "probe", "namespace": "default"},
            "spec": spec,
        }
        seen.append("means nothing" in create(body)[1])
    return all(seen)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace of the test's own, under the restricted Pod Security Standard."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    # Pods are refused until the namespace has its account.
    eventually(lambda: get("serviceaccount", "default", name), bool)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")
