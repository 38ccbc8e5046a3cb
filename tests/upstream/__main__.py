"""`make test-upstream [ARGS=--focus=REGEXP]`: compiles the suite and runs it in a test cluster of its own."""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster import images
from tests.cluster.paths import REPOSITORY
from tests.cluster.shell import ClusterError, progress, run

HERE = Path(__file__).parent
TOOLS = ("github.com/onsi/ginkgo/v2/ginkgo", "k8s.io/kubernetes/test/images/agnhost")
REGISTRY = "registry.k8s.io/e2e-test-images"
# As test/utils/image/manifest.go of the pinned Kubernetes names them, and the Dockerfile's target for each.
POD_IMAGES = {
    "busybox:1.37.0-2": "tools",
    "glibc-dns-testing:2.1.1": "tools",
    "nginx:1.27.0-2": "tools",
    "agnhost:2.66.1": "agnhost",
}


def main() -> int:
    """The exit status is the suite's."""
    parser = argparse.ArgumentParser(prog="make test-upstream", description=__doc__)
    parser.add_argument("--focus", default="", help="only tests whose name matches")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kube3fs-upstream-") as scratch:
        folder = Path(scratch)
        _compile(folder)
        archives = [_image(folder, name, target) for name, target in POD_IMAGES.items()]
        cluster = [sys.executable, "-m", "tests.cluster", "run"]
        cluster += [f"--image={archive}" for archive in archives]
        suite = [sys.executable, "-m", "tests.upstream.suite", str(folder), arguments.focus]
        return subprocess.run([*cluster, "--", *suite], cwd=REPOSITORY, check=False).returncode


def _compile(folder: Path) -> None:
    env = {"CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", "GOGC": os.environ.get("GOGC", "400")}
    small = ("-trimpath", "-ldflags=-s -w")
    with progress("compiling the suite: the first time about 3 minutes"):
        test = ["go", "test", "-c", *small, "-o", str(folder / "suite.test"), "."]
        run(test, cwd=HERE, env=env, timeout=1800)
        run(["go", "build", *small, "-o", f"{folder}/", *TOOLS], cwd=HERE, env=env, timeout=1800)


def _image(folder: Path, name: str, target: str) -> Path:
    """An archive of the image; its base is that of our own images."""
    builder = images.builder_with_bases()
    builder.build(folder, f"{REGISTRY}/{name}", [f"--file={HERE / 'Dockerfile'}", f"--target={target}"])
    archive = folder / f"{name.partition(':')[0]}.tar"
    builder.save(f"{REGISTRY}/{name}", archive)
    return archive


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClusterError as error:
        sys.exit(f"test-upstream: {error}")
