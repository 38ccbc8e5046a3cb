"""Builds the images of the Dockerfile with buildah or docker, once per content, and keeps each as an archive.

Where no image registry answers, the images that the Dockerfile starts from are made here under their names:
Debian from Debian's packages, Rust from that and this machine's toolchain.
"""

import hashlib
import os
import re
import resource
import shutil
import subprocess
import tempfile
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.cluster import cache
from tests.cluster.build import install
from tests.cluster.paths import CACHE, REPOSITORY
from tests.cluster.shell import ClusterError, progress, run, say

REGISTRY = "ghcr.io/kube3fs"
# What each image is made from, besides the Dockerfile and the images that it starts from.
_NATIVE = ("client-native", "tests/bench/native")
TARGETS = {
    "operator": ("operator/requirements.txt", "operator/src", "crds/src"),
    "csi": ("csi/requirements.txt", "csi/src", "crds/src", *_NATIVE),
    "usrbiod": _NATIVE,
    "client": _NATIVE,
    "demo": (*_NATIVE, "docs/examples/demo"),
}
_STUBS = REPOSITORY / "csi/src/kube3fs_csi/api/csi_pb2.py"
"""Made by `make venv`, and not in the tree: the csi image copies what is there."""
_NOT_INPUT = {"target", "fuzz", "tests", "examples", "__pycache__", "BENCHMARKS.md", "CONTROL.md"}
"""Names of folders and files below those that .dockerignore leaves out as well."""

# Build secret of the Dockerfile: where this machine may have it.
_SECRETS = {
    "pip.conf": (Path.home() / ".config/pip/pip.conf", Path("/etc/pip.conf")),
    "cargo.toml": (Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "config.toml",),
    "ca.crt": (Path("/etc/ssl/certs/ca-certificates.crt"),),
}


@dataclass(frozen=True)
class Image:
    """One target of the Dockerfile, built."""

    target: str
    name: str
    archive: Path


def version() -> str:
    """The version of this tree, which is also its images' tag."""
    project = tomllib.loads((REPOSITORY / "operator/pyproject.toml").read_text())["project"]
    return str(project["version"])


def ensure() -> list[Image]:
    """Every image of this tree; builds those whose archive is missing."""
    make_stubs(_STUBS)
    images = []
    for target in TARGETS:
        name = f"{REGISTRY}/{target}:{version()}"
        archive = CACHE / "images" / f"{target}-{content_key(REPOSITORY, target)}.tar"
        images.append(Image(target, name, cache.made(archive, partial(_build, target, name))))
    return images


def make_stubs(stubs: Path) -> None:
    """Has the gRPC stubs made where nobody has made them: without them the csi image could not start."""
    if not stubs.exists():
        with progress("making the gRPC stubs of csi/ (make stubs)"):
            run(["make", "-s", "-C", str(REPOSITORY), "stubs"], timeout=900)


def content_key(tree: Path, target: str) -> str:
    """Identifies what goes into the image `target`: its files' names, modes and bytes, and its tag."""
    digest = hashlib.sha256(version().encode())
    for path in [tree / "Dockerfile", *(file for given in TARGETS[target] for file in _files(tree / given))]:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(tree)}\0{path.stat().st_mode}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = []
    for folder, folders, files in os.walk(path):
        folders[:] = sorted(set(folders) - _NOT_INPUT)
        found += [Path(folder, name) for name in sorted(set(files) - _NOT_INPUT)]
    return found


def _build(target: str, name: str, archive: Path) -> None:
    builder = builder_with_bases()
    with progress(f"building the image {name}"):
        arguments = [
            f"--target={target}",
            f"--build-arg=VERSION={version()}",
            f"--build-arg=REVISION={_revision()}",
        ]
        for secret, places in _SECRETS.items():
            arguments += [f"--secret=id={secret},src={place}" for place in places if place.exists()][:1]
        builder.build(REPOSITORY, name, arguments)
        builder.save(name, archive)


def builder_with_bases() -> "Builder":
    """What builds images here, with the images that the Dockerfile starts from in its store."""
    builder = Builder.find()
    with cache.alone(CACHE / "bases.lock"):
        for base in bases():
            if not builder.has(base):
                builder.fetch_or_make(base)
    return builder


def _revision() -> str:
    """The commit that the image is built from, with `-dirty` when files differ from it."""
    try:
        return run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty"], cwd=REPOSITORY, timeout=30
        ).strip()
    except ClusterError:
        return "unknown"


def bases() -> dict[str, str]:
    """The images that the Dockerfile starts from: their names, and the build arguments that hold them."""
    found = re.findall(r"^ARG (DEBIAN|RUST)=(\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    return {name: argument for argument, name in found}


class Builder:
    """buildah or docker."""

    def __init__(self, program: str) -> None:
        self._program = program

    @classmethod
    def find(cls) -> "Builder":
        """Buildah where it is installed; else docker, if its daemon answers; else buildah, installed now."""
        if not shutil.which("buildah"):
            if (
                shutil.which("docker")
                and not subprocess.run(["docker", "info"], capture_output=True).returncode
            ):
                return cls("docker")
            install(("buildah",))
        return cls("buildah")

    def has(self, name: str) -> bool:
        """Whether the image `name` is in the local store."""
        kind = ["--type=image"] if self._program == "buildah" else ["--type", "image"]
        return not subprocess.run([self._program, "inspect", *kind, name], capture_output=True).returncode

    def build(self, context: Path, name: str, arguments: list[str]) -> None:
        """Build `context` into the image `name`; its output is shown when it fails."""
        if self._program == "buildah":
            # chroot: no more capabilities than we have. The limit: a container may not raise its own.
            files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            argv = ["buildah", "build", "--layers", "--pull=never", "--isolation=chroot", "--network=host"]
            argv += [f"--ulimit=nofile={files}:{files}", "--format=oci"]
        else:
            argv = ["docker", "build", "--pull=false", "--network=host"]
        argv += [*arguments, "-t", name, str(context)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            say("\n".join(done.stdout.splitlines()[-40:]))
            raise ClusterError(f"building {name} failed: see above; do the package registries answer?")

    def save(self, name: str, to: Path) -> None:
        """Write the image as an archive that containerd takes under the same name."""
        if self._program == "buildah":
            # Docker's format, because buildah compresses the layers of an OCI archive, always.
            run(["buildah", "push", name, f"docker-archive:{to}:{name}"], timeout=300)
        else:
            run(["docker", "save", "-o", to, name], timeout=300)

    def fetch_or_make(self, name: str) -> None:
        """Have the image `name` in the local store: from its registry, or made here."""
        if registry_answers(name):
            with progress(f"fetching {name}"):
                run([self._program, "pull", name], timeout=600, advice="does the registry answer?")
            return
        say(f"the registry of {name} does not answer: making the image here")
        with progress(f"making {name}"), tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            make = _make_debian if bases()[name] == "DEBIAN" else _make_rust
            context = make(Path(scratch))
            self.build(
                context, name, ["--label=io.kube3fs.made-locally=true", f"--file={scratch}/Dockerfile"]
            )


def registry_answers(name: str) -> bool:
    """Whether the registry that the image `name` comes from answers within 5 seconds."""
    host = name.partition("/")[0]
    try:
        urllib.request.urlopen(
            f"https://{'registry-1.docker.io' if host == 'docker.io' else host}/v2/", timeout=5
        )
    except urllib.error.HTTPError as error:
        return error.code == 401  # "log in": it is there, and public images need no login
    except OSError:
        return False
    return True


def _debian() -> str:
    return next(name for name, argument in bases().items() if argument == "DEBIAN")


def _make_debian(scratch: Path) -> Path:
    """A build context for Debian's slim image: the release of its tag, from the mirrors of this machine."""
    install(("mmdebstrap",))
    release = _debian().partition(":")[2].partition("-")[0]
    slim = [
        f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "info", "locale", "lintian")
    ]
    (scratch / "sources.list").write_text(
        "".join(f"deb {source} main\n" for source in _debian_sources(release))
    )
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", *slim]
    advice = "does the Debian mirror of /etc/apt answer?"
    run([*argv, release, scratch / "root.tar", scratch / "sources.list"], timeout=600, advice=advice)
    (scratch / "Dockerfile").write_text('FROM scratch\nADD root.tar /\nCMD ["bash"]\n')
    return scratch


def _debian_sources(release: str) -> list[str]:
    """`URI suite` of every Debian source of this machine, for another release."""
    own = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.MULTILINE)
    wanted = ("--format", "$(REPO_URI) $(RELEASE)", "Origin: Debian", "Created-By: Packages")
    lines = sorted(set(run(["apt-get", "indextargets", *wanted], timeout=60).splitlines()))
    if not own or not lines:
        raise ClusterError("apt knows no Debian source: name one in /etc/apt and run `apt-get update`")
    return [line.replace(f" {own[1]}", f" {release}") for line in lines]


def _make_rust(scratch: Path) -> Path:
    """A build context for an image with this machine's Rust where the official image has it."""
    toolchain = Path(
        run(["rustc", "--print", "sysroot"], timeout=30, advice="install Rust (rustup.rs)").strip()
    )
    (scratch / "Dockerfile").write_text(
        f"FROM {_debian()}\n"
        "RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev"
        " && rm -rf /var/lib/apt/lists/*\n"
        "COPY bin /usr/local/cargo/bin\nCOPY lib /usr/local/cargo/lib\n"
        "ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/bin:/usr/bin:/usr/sbin\n"
    )
    return toolchain
