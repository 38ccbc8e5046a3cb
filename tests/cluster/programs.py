"""What is compiled, from which Go module, how. The versions are pinned in modules/*/go.mod."""

from dataclasses import dataclass

# Kubernetes' programs and etcd are one binary with many names: what they share is compiled and loaded once.
KUBERNETES_NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)


@dataclass(frozen=True)
class Build:
    """One `go build`: packages of one module, with one set of flags."""

    module: str
    """Folder below modules/."""
    packages: tuple[str, ...]
    folder: str
    """Where the programs go, below the build's folder: `bin` or `cni`."""
    output: str = ""
    """The program's name, where it is not the package's last part (one package only)."""
    tags: str = ""
    cgo: bool = False
    versions: tuple[tuple[str, str], ...] = ()
    """Linker variable and the module whose version it gets."""
    fixed: tuple[tuple[str, str], ...] = ()
    """Linker variable and its value."""


_CONTAINERD = "github.com/containerd/containerd/v2"
_CNI = "github.com/containernetworking/plugins/plugins"
_RUNC = "github.com/opencontainers/runc"
_HELM = "helm.sh/helm/v4"
_CSI = "github.com/kubernetes-csi"
_PROVISIONER = f"{_CSI}/external-provisioner/v6"
_RESIZER = f"{_CSI}/external-resizer/v2"
_SNAPSHOTTER = f"{_CSI}/external-snapshotter/v8"
_K8S_VERSIONS = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")

BUILDS = (
    Build(
        "k8s",
        (".",),
        "bin",
        output="kubernetes",
        versions=tuple((f"{package}.gitVersion", "k8s.io/kubernetes") for package in _K8S_VERSIONS),
        fixed=tuple((f"{package}.gitTreeState", "clean") for package in _K8S_VERSIONS),
    ),
    Build(
        "node",
        tuple(f"{_CONTAINERD}/cmd/{name}" for name in ("containerd", "containerd-shim-runc-v2", "ctr")),
        "bin",
        tags="no_btrfs no_devmapper no_zfs no_aufs",
        versions=((f"{_CONTAINERD}/version.Version", _CONTAINERD),),
    ),
    Build(
        "node",
        tuple(f"{_CNI}/{name}" for name in ("main/ptp", "main/loopback", "ipam/host-local", "meta/portmap")),
        "cni",
    ),
    # runc enters namespaces before Go starts: it needs C, and libseccomp for pods' seccomp profiles.
    Build("node", (_RUNC,), "bin", tags="seccomp", cgo=True, versions=(("main.version", _RUNC),)),
    Build("tools", ("./coredns",), "bin"),
    Build(
        "tools",
        (
            "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
            f"{_CSI}/csi-test/v5/cmd/csi-sanity",
        ),
        "bin",
    ),
    Build("tools", (f"{_HELM}/cmd/helm",), "bin", versions=((f"{_HELM}/internal/version.version", _HELM),)),
    Build("tools", (f"{_RESIZER}/cmd/csi-resizer",), "bin", versions=(("main.version", _RESIZER),)),
    Build(
        "tools",
        (f"{_SNAPSHOTTER}/cmd/csi-snapshotter", f"{_SNAPSHOTTER}/cmd/snapshot-controller"),
        "bin",
        versions=(("main.version", _SNAPSHOTTER),),
    ),
    # Does not compile with the client-go of the others.
    Build(
        "provisioner",
        (f"{_PROVISIONER}/cmd/csi-provisioner",),
        "bin",
        versions=(("main.version", _PROVISIONER),),
    ),
)


@dataclass(frozen=True)
class Sidecar:
    """An image of one static program, under the name that charts use for it."""

    program: str
    module: str
    """Folder below modules/."""
    source: str
    """The Go module whose version is the image's tag."""


# Holds a pod's namespaces: modules/pause.
PAUSE = "localhost/pause:1"

SIDECAR_REGISTRY = "registry.k8s.io/sig-storage"
SIDECARS = (
    Sidecar("csi-provisioner", "provisioner", _PROVISIONER),
    Sidecar("csi-resizer", "tools", _RESIZER),
    Sidecar("csi-snapshotter", "tools", _SNAPSHOTTER),
    Sidecar("snapshot-controller", "tools", _SNAPSHOTTER),
)

# Manifests and .proto files of pinned modules: folder of modules/, Go module, pattern in it, where to.
FILES = (
    (
        "tools",
        f"{_CSI}/external-snapshotter/client/v8",
        "config/crd/*snapshot*.yaml",
        "manifests/snapshot-crds",
    ),
    (
        "tools",
        _SNAPSHOTTER,
        "deploy/kubernetes/snapshot-controller/*snapshot-controller.yaml",
        "manifests/snapshot-controller",
    ),
    ("k8s", "github.com/container-storage-interface/spec", "csi.proto", "protos/csi"),
    ("k8s", "k8s.io/kubelet", "pkg/apis/pluginregistration/v1/api.proto", "protos/pluginregistration"),
    ("k8s", "k8s.io/kubelet", "pkg/apis/deviceplugin/v1beta1/api.proto", "protos/deviceplugin"),
)

# Debian package and file. promtool from its Go module would compile the SDK of every cloud.
DEBIAN_PROGRAMS = (("prometheus", "usr/bin/promtool"),)
