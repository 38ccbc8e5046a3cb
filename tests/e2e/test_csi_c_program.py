"""A program in C: compiled against what the volume `client` has, it runs in a restricted pod."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.paths import REPOSITORY
from tests.e2e.kube import Cluster, Namespace
from tests.e2e.kube3fs import CLASSES, claim, inline, installed, of_claim, pod

SOURCES = REPOSITORY / "client-native/usrbio-capi/tests/c"


@pytest.fixture(scope="module", autouse=True)
def _kube3fs(cluster: Cluster) -> Iterator[None]:
    with installed(cluster):
        yield


def test_a_c_program_reads_and_writes_through_rings(namespace: Namespace, tmp_path: Path) -> None:
    """The C interface's round trip, built with the volume's header and library, holds for uid 1000."""
    volumes = {
        "/data": of_claim("data"),
        "/dev/shm": inline("shm", size="64Mi"),
        "/opt/client": inline("client"),
    }
    namespace.apply([claim("data", CLASSES["directory"]), pod("p", volumes)])
    namespace.wait_ready("p")
    client = _exec(namespace, "tar", "-C", "/opt/client", "-c", "include", "lib")
    with tarfile.open(fileobj=io.BytesIO(client)) as archive:
        archive.extractall(tmp_path, filter="data")
    program = tmp_path / "program"
    flags = ["-std=c99", f"-I{tmp_path}/include", f"-L{tmp_path}/lib", "-lusrbio"]
    subprocess.run(["gcc", SOURCES / "c_client.c", "-o", program, *flags], check=True, timeout=60)
    _exec(namespace, "sh", "-c", "cat > /data/program && chmod +x /data/program", stdin=program.read_bytes())
    printed = namespace.exec("p", "env", "LD_LIBRARY_PATH=/opt/client/lib", "/data/program", "/data")
    assert printed.splitlines()[-1] == "ok"
    assert "reads through a ring of priority 0" in printed


def _exec(namespace: Namespace, *argv: str, stdin: bytes = b"") -> bytes:
    """What a command in the pod printed, as bytes: the client library's streams are text."""
    kubectl = ["kubectl", "-n", namespace.name, "exec", "-i", "p", "--", *argv]
    return subprocess.run(kubectl, input=stdin, capture_output=True, check=True, timeout=60).stdout
