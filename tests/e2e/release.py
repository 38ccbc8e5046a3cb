"""The chart, installed on the test cluster as a user installs it."""

import subprocess
from pathlib import Path

import pytest

from tests.api.kube import kubectl

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/kube3fs"
EXAMPLES = ROOT / "docs/examples"
SYSTEM = "kube3fs-system"


def helm(*arguments: str, timeout: float = 300) -> str:
    """Run helm in the system namespace; returns its output."""
    done = subprocess.run(
        ["helm", *arguments, "--namespace", SYSTEM],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"helm {' '.join(arguments)}: {done.stderr}")
    return done.stdout


def install() -> None:
    """Install or upgrade, and wait until everything is ready."""
    helm("upgrade", "--install", "kube3fs", str(CHART), "--wait", "--timeout=4m")


def make_cluster() -> None:
    """The StorageCluster of the examples, ready."""
    kubectl("apply", "-f", str(EXAMPLES / "storagecluster.yaml"))
    kubectl("wait", "--for=condition=Ready", "storagecluster/demo", "-n", "default", "--timeout=60s")


@pytest.fixture(scope="session")
def release() -> str:
    """The chart is installed and the StorageCluster of the examples is ready; the value is the namespace."""
    labels = "pod-security.kubernetes.io/enforce=privileged"
    manifest = kubectl("create", "namespace", SYSTEM, "--dry-run=client", "-o", "yaml")
    kubectl("apply", "-f", "-", stdin=manifest)
    kubectl("label", "namespace", SYSTEM, labels, "--overwrite")
    install()
    make_cluster()
    return SYSTEM
