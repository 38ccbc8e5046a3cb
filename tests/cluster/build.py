"""Compiles the cluster's programs and the test tools, once per set of pins."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster import cache, programs
from tests.cluster.oci import write_image
from tests.cluster.paths import CACHE, MODULES
from tests.cluster.shell import ClusterError, last_line, progress, run, say

PACKAGES = (
    "conntrack",
    "gcc",
    "iproute2",
    "iptables",
    "libc6-dev",
    "libseccomp-dev",
    "openssl",
    "pkg-config",
)
"""Debian packages that compiling and running need; the Makefile installs them too."""

NO_PROXY = (
    "does the Go module proxy answer? See `go env GOPROXY`; then run this again, it goes on where it was"
)


def key() -> str:
    """Identifies what a build makes: the pins, the flags and the compiler."""
    digest = hashlib.sha256(run(["go", "version"], timeout=10, advice="install Go 1.26 or later").encode())
    digest.update(
        repr((programs.BUILDS, programs.SIDECARS, programs.FILES, programs.DEBIAN_PROGRAMS)).encode()
    )
    for path in sorted(p for p in MODULES.rglob("*") if p.is_file()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def folder() -> Path:
    """Where the programs of this tree's pins are, or will be: bin/, cni/, images/, manifests/, protos/."""
    return CACHE / "cluster" / key()


def ensure() -> Path:
    """The folder of programs; compiles what is missing there. Safe to call from several processes at once."""
    install(PACKAGES)
    return cache.made(folder(), _build)


def _build(to: Path) -> None:
    free = shutil.disk_usage(to.parent).free >> 30
    if free < 8:
        raise ClusterError(f"compiling needs 8 GiB of disk and {CACHE} has {free} free: free some space")
    say("compiling Kubernetes, containerd and the tools: the first time about 15 minutes on 2 cores")
    to.mkdir()
    for build in programs.BUILDS:
        with progress(f"compiling {', '.join(_names(build))}"):
            _compile(build, to)
    for name in programs.KUBERNETES_NAMES:
        (to / "bin" / name).symlink_to("kubernetes")
    with progress("images of the sidecars, manifests, promtool"):
        _images(to)
        _files(to)
        for package, path in programs.DEBIAN_PROGRAMS:
            _from_debian(package, path, to / "bin")


def install(packages: tuple[str, ...]) -> None:
    """Install the Debian packages that are missing."""
    query = subprocess.run(
        ["dpkg-query", "-Wf", "${Package} ${Status}\n", *packages], capture_output=True, text=True
    )
    there = {line.split()[0] for line in query.stdout.splitlines() if line.endswith("ok installed")}
    missing = sorted(set(packages) - there)
    if not missing:
        return
    apt = {"DEBIAN_FRONTEND": "noninteractive"}
    with progress(f"installing {' '.join(missing)}"):
        advice = "does the Debian mirror of /etc/apt answer?"
        run(["apt-get", "update", "-qq"], timeout=300, env=apt, advice=advice)
        run(
            ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing],
            timeout=600,
            env=apt,
            advice=advice,
        )


def _names(build: programs.Build) -> list[str]:
    return [build.output or package.rsplit("/", 1)[-1] for package in build.packages]


def _compile(build: programs.Build, to: Path) -> None:
    module = MODULES / build.module
    variables = {variable: version(build.module, of) for variable, of in build.versions} | dict(build.fixed)
    flags = " ".join(["-s -w", *(f"-X {name}={value}" for name, value in variables.items())])
    out = to / build.folder
    out.mkdir(exist_ok=True)
    argv = ["go", "build", "-trimpath", "-ldflags", flags, "-tags", build.tags]
    argv += ["-o", str(out / build.output) if build.output else f"{out}/", *build.packages]
    env = {**os.environ, "CGO_ENABLED": "1" if build.cgo else "0", "GOFLAGS": "-buildvcs=false"}
    # The compiler's own garbage collection is a fifth of its time; a compiler may take some GiB here.
    env.setdefault("GOGC", "400")
    with subprocess.Popen(argv, cwd=module, env=env, stderr=subprocess.PIPE, text=True) as go:
        assert go.stderr is not None
        error, downloads = "", 0
        for line in go.stderr:
            if not line.startswith("go: downloading"):
                error += line
                continue
            downloads += 1
            if downloads % 50 == 0:
                say(f"{downloads} Go modules downloaded")
    if go.returncode:
        raise ClusterError(f"compiling {_names(build)[0]} failed: {last_line(error)}")


def version(module: str, of: str) -> str:
    """The version of the Go module `of` that modules/`module` pins, as `v1.2.3`."""
    return run(
        ["go", "list", "-m", "-f", "{{.Version}}", of], cwd=MODULES / module, timeout=300, advice=NO_PROXY
    ).strip()


def _images(to: Path) -> None:
    """The images of programs that are a single static file: the pause image and the CSI sidecars."""
    images = to / "images"
    images.mkdir()
    with tempfile.TemporaryDirectory() as scratch:
        pause = Path(scratch, "pause")
        run(["gcc", "-static", "-O2", "-s", "-o", pause, MODULES / "pause" / "pause.c"], timeout=60)
        write_image(images / "pause.tar", programs.PAUSE, pause)
    for sidecar in programs.SIDECARS:
        name = f"{programs.SIDECAR_REGISTRY}/{sidecar.program}:{version(sidecar.module, sidecar.source)}"
        write_image(images / f"{sidecar.program}.tar", name, to / "bin" / sidecar.program)


def _files(to: Path) -> None:
    for module, of, pattern, target in programs.FILES:
        place = run(
            ["go", "list", "-m", "-f", "{{.Dir}}", of], cwd=MODULES / module, timeout=300, advice=NO_PROXY
        )
        found = sorted(Path(place.strip()).glob(pattern))
        if not found:
            raise ClusterError(f"the Go module {of} has no {pattern}: correct modules/ or programs.py")
        (to / target).mkdir(parents=True)
        for path in found:
            shutil.copyfile(path, to / target / path.name)


def _from_debian(package: str, path: str, to: Path) -> None:
    """One program out of a Debian package, without installing the service that comes with it."""
    with tempfile.TemporaryDirectory() as scratch:
        # As root, so that apt may write there: its own user has no access to a private folder.
        run(
            ["apt-get", "-o", "APT::Sandbox::User=root", "download", "-qq", package],
            cwd=Path(scratch),
            timeout=300,
        )
        [deb] = Path(scratch).glob("*.deb")
        run(["dpkg-deb", "-x", deb, scratch], timeout=60)
        shutil.copy(Path(scratch, path), to)
