"""Command lines and configuration files of every program, from a Spec. Pure: nothing is read or written here.

Configuration files that want YAML get JSON, which is YAML.
"""

import json

from tests.cluster import spec as s
from tests.cluster.programs import PAUSE
from tests.cluster.spec import Node, Spec

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


def etcd(spec: Spec) -> list[str]:
    """The cluster's data dies with the cluster: no fsync."""
    client = "http://127.0.0.1:2379"
    return [
        "etcd",
        f"--data-dir={spec.folder}/etcd",
        "--log-level=warn",
        "--unsafe-no-fsync",
        "--listen-peer-urls=http://127.0.0.1:2380",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
    ]


def apiserver(spec: Spec) -> list[str]:
    """As kubeadm starts it, but with users from a token file: each component is its own user all the same."""
    pki = spec.folder / "pki"
    return [
        "kube-apiserver",
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        f"--secure-port={s.API_PORT}",
        f"--advertise-address={s.FIRST.address}",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--client-ca-file={pki}/ca.crt",
        f"--token-auth-file={pki}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--service-cluster-ip-range={s.SERVICES}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--service-account-key-file={pki}/sa.key",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-client-certificate={pki}/client.crt",
        f"--kubelet-client-key={pki}/client.key",
        f"--requestheader-client-ca-file={pki}/ca.crt",
        "--requestheader-allowed-names=kube-apiserver-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki}/client.crt",
        f"--proxy-client-key-file={pki}/client.key",
        *_gates(spec),
    ]


def controller_manager(spec: Spec) -> list[str]:
    pki = spec.folder / "pki"
    return [
        "kube-controller-manager",
        *_client(spec, "controller-manager"),
        f"--service-account-private-key-file={pki}/sa.key",
        "--use-service-account-credentials=true",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        # Tests of a lost node wait for these: seconds instead of minutes.
        "--node-monitor-grace-period=16s",
        "--node-monitor-period=2s",
        *_gates(spec),
    ]


def scheduler(spec: Spec) -> list[str]:
    return ["kube-scheduler", *_client(spec, "scheduler"), *_gates(spec)]


def containerd(spec: Spec, node: Node) -> list[str]:
    return ["containerd", "--config", f"{spec.folder}/{node.name}/containerd.toml"]


def kubelet(spec: Spec, node: Node) -> list[str]:
    folder = spec.folder / node.name
    return [
        "kubelet",
        f"--kubeconfig={kubeconfig_path(spec, node.name)}",
        f"--config={folder}/kubelet.yaml",
        f"--cert-dir={folder}/kubelet-certs",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]


def proxy(spec: Spec, node: Node) -> list[str]:
    return ["kube-proxy", f"--config={spec.folder}/proxy.yaml", f"--hostname-override={node.name}"]


def coredns(spec: Spec) -> list[str]:
    return ["coredns", "-quiet", "-conf", f"{spec.folder}/Corefile"]


def kubeconfig_path(spec: Spec, name: str) -> str:
    return f"{spec.folder}/kubeconfigs/{name}"


def kubeconfig(server: str, ca: str, token: str) -> str:
    """A kubeconfig that needs no other file. `ca` is the CA's certificate in base64."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "kube3fs", "cluster": {"server": server, "certificate-authority-data": ca}}
            ],
            "users": [{"name": "kube3fs", "user": {"token": token}}],
            "contexts": [{"name": "kube3fs", "context": {"cluster": "kube3fs", "user": "kube3fs"}}],
            "current-context": "kube3fs",
        },
        indent=1,
    )


def kubelet_config(spec: Spec, node: Node) -> str:
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{spec.folder}/pki/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{spec.cgroup}/{node.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            # Lowering it needs CAP_SYS_RESOURCE, which a container that runs this may lack.
            "oomScoreAdj": 0,
            "clusterDomain": "cluster.local",
            "clusterDNS": [s.DNS_SERVICE],
            # The machine's disk is not this cluster's to judge.
            "evictionHard": dict.fromkeys(
                ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%"
            ),
            "imageGCHighThresholdPercent": 100,
            # Tests wait for these: seconds instead of minutes.
            "syncFrequency": "2s",
            "nodeStatusUpdateFrequency": "2s",
            "featureGates": feature_gates(spec.feature_gates),
        },
        indent=1,
    )


def proxy_config(spec: Spec) -> str:
    """The conntrack limits belong to the machine: zeros leave them alone."""
    return json.dumps(
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": kubeconfig_path(spec, "proxy")},
            "clusterCIDR": s.PODS,
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
            "oomScoreAdj": 0,
            "featureGates": feature_gates(spec.feature_gates),
        },
        indent=1,
    )


def cni_config(spec: Spec, node: Node) -> str:
    """Every pod has a routed link of its own (ptp): services work without br_netfilter."""
    ipam = {
        "type": "host-local",
        "dataDir": f"{spec.folder}/{node.name}/ipam",
        "ranges": [[{"subnet": node.pods}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    ports = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps(
        {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": ipam}, ports]}
    )


def containerd_config(spec: Spec, node: Node) -> str:
    folder = spec.folder / node.name
    return f"""version = 3
root = "{folder}/containerd"
state = "/run/containerd/state"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  # Without CAP_SYS_RESOURCE runc may not lower a score.
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{spec.programs}/cni"]
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = "{spec.bin}/runc"
      SystemdCgroup = false
"""


def corefile(spec: Spec) -> str:
    return f"""cluster.local in-addr.arpa {{
  bind {s.FIRST.address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {kubeconfig_path(spec, "dns")}
    pods insecure
  }}
  cache 5
}}
. {{
  bind {s.FIRST.address}
  errors
  ready 127.0.0.1:8181
}}
"""


def feature_gates(text: str) -> dict[str, bool]:
    """`A=true,B=false` as a dictionary. ValueError, with a sentence, when it is not of that form."""
    gates = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if not name.isalnum() or value not in ("true", "false"):
            raise ValueError(
                f"'{part}' is not a feature gate: write Name=true or Name=false, separated by commas"
            )
        gates[name] = value == "true"
    return gates


def _gates(spec: Spec) -> list[str]:
    return [f"--feature-gates={spec.feature_gates}"] if spec.feature_gates else []


def _client(spec: Spec, name: str) -> list[str]:
    """Flags of a client of the API server that is alone of its kind and listens on its node only."""
    path = kubeconfig_path(spec, name)
    return [
        f"--kubeconfig={path}",
        f"--authentication-kubeconfig={path}",
        f"--authorization-kubeconfig={path}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]
