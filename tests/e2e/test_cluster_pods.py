"""The cluster itself: pods run, are restricted, find each other and the API server, and go where asked."""

import textwrap

import pytest
import yaml
from kubernetes.client.exceptions import ApiException

from tests.e2e.kube import (
    CLIENT_IMAGE,
    SLEEP,
    Cluster,
    ExecFailed,
    Namespace,
    restricted_pod,
    wait_for,
)

_SERVER = ("python3", "-m", "http.server", "8080", "--directory", "/etc")


def test_restricted_pod_runs_and_logs(namespace: Namespace) -> None:
    """A pod that asks for nothing special runs as uid 1000 under the restricted level, and has a log."""
    namespace.apply(restricted_pod("who", "id", "-u"))
    assert namespace.wait_done("who") == "1000\n"


def test_client_image_has_the_command_line(namespace: Namespace) -> None:
    """The client image runs `usrbio`, and Python in it imports the package."""
    namespace.apply(restricted_pod("cli", "sh", "-c", "usrbio --help && python3 -c 'import usrbio'"))
    assert "usage: usrbio" in namespace.wait_done("cli")


def test_exec_returns_output_and_exit_code(namespace: Namespace) -> None:
    """A command in a running pod gives back what it printed, and its exit code."""
    namespace.apply(restricted_pod("idle", *SLEEP))
    namespace.wait_ready("idle")
    assert namespace.exec("idle", "hostname") == "idle\n"
    with pytest.raises(ExecFailed, match="ended with 3") as failed:
        namespace.exec("idle", "sh", "-c", "exit 3")
    assert failed.value.code == 3


def test_restricted_namespace_refuses_privileges(namespace: Namespace) -> None:
    """Pod Security admission refuses a privileged container and says why."""
    pod = restricted_pod("bad", *SLEEP, container={"securityContext": {"privileged": True}})
    with pytest.raises(ApiException, match="violates PodSecurity") as refused:
        namespace.apply(pod)
    assert refused.value.status == 403


def test_crd_rule_refuses_a_bad_object(cluster: Cluster, namespace: Namespace) -> None:
    """A CRD's CEL rule refuses an object that breaks it, with the rule's message, and admits a good one."""
    cluster.apply(
        """
        apiVersion: apiextensions.k8s.io/v1
        kind: CustomResourceDefinition
        metadata: {name: ranges.e2e.kube3fs.io}
        spec:
          group: e2e.kube3fs.io
          names: {kind: Range, plural: ranges}
          scope: Namespaced
          versions:
          - name: v1
            served: true
            storage: true
            schema:
              openAPIV3Schema:
                type: object
                properties:
                  spec:
                    type: object
                    properties: {min: {type: integer}, max: {type: integer}}
                    x-kubernetes-validations: [{rule: self.min <= self.max, message: min is above max}]
        """
    )

    def apply(name: str, low: int, high: int) -> object:
        body = {"metadata": {"name": name}, "spec": {"min": low, "max": high}}
        return namespace.apply({"apiVersion": "e2e.kube3fs.io/v1", "kind": "Range", **body})

    def served() -> object:
        try:
            return cluster.dynamic.resources.get(api_version="e2e.kube3fs.io/v1", kind="Range")
        except Exception as error:
            raise AssertionError(error) from None

    wait_for("the kind Range served", served)
    wait_for("a good Range admitted", lambda: apply("good", 1, 2))
    with pytest.raises(ApiException, match="min is above max"):
        apply("bad", 3, 2)


@pytest.mark.parametrize("client_node", ["node-1", "node-2"])
def test_service_is_reached_by_its_name(namespace: Namespace, client_node: str) -> None:
    """A pod on any node reaches a service of another pod by its DNS name."""
    server = restricted_pod(
        "web", *_SERVER, nodeName="node-1", container={"ports": [{"containerPort": 8080}]}
    )
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}
    namespace.apply(
        [server, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service}]
    )
    namespace.apply(restricted_pod("client", *SLEEP, nodeName=client_node))
    namespace.wait_ready("web", "client")
    url = f"http://web.{namespace.name}/hostname"
    fetch = f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).read().decode())"

    def answer() -> str:
        try:
            return namespace.exec("client", "python3", "-c", fetch)
        except ExecFailed as error:  # kube-proxy may not know the service yet
            raise AssertionError(error) from None

    assert wait_for("an answer of the service", answer).strip() == "web"


def test_pod_talks_to_the_api_server_with_its_own_rights(namespace: Namespace) -> None:
    """A pod's service account may do what its role says, and nothing else."""
    namespace.apply(
        """
        apiVersion: rbac.authorization.k8s.io/v1
        kind: Role
        metadata: {name: reader}
        rules: [{apiGroups: [""], resources: [pods], verbs: [list]}]
        ---
        apiVersion: rbac.authorization.k8s.io/v1
        kind: RoleBinding
        metadata: {name: reader}
        roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
        subjects: [{kind: ServiceAccount, name: default}]
        """
    )
    script = textwrap.dedent(
        """
        import ssl, urllib.error, urllib.request
        own = "/var/run/secrets/kubernetes.io/serviceaccount/"
        token, namespace = open(own + "token").read(), open(own + "namespace").read()
        for kind in "pods", "secrets":
            url = f"https://kubernetes.default.svc/api/v1/namespaces/{namespace}/{kind}"
            request = urllib.request.Request(url, headers={"Authorization": "Bearer " + token})
            try:
                tls = ssl.create_default_context(cafile=own + "ca.crt")
                answer = urllib.request.urlopen(request, context=tls)
                print(kind, answer.status)
            except urllib.error.HTTPError as error:
                print(kind, error.code)
        """
    )
    namespace.apply(restricted_pod("asker", "python3", "-c", script))
    assert namespace.wait_done("asker") == "pods 200\nsecrets 403\n"


@pytest.mark.parametrize("node", ["node-1", "node-2"])
def test_scheduler_places_by_topology(namespace: Namespace, node: str) -> None:
    """A pod that asks for a node's topology label runs on that node."""
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]
    affinity = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    }
    namespace.apply(restricted_pod("placed", "true", affinity=affinity))
    namespace.wait_done("placed")
    assert namespace.pod("placed").spec.node_name == node


def test_spread_pods_run_on_both_nodes(namespace: Namespace) -> None:
    """Two pods that must not share a topology domain run on two nodes."""
    labels = {"matchLabels": {"kube3fs.io/e2e": "spread"}}
    rule = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    for name in ("one", "two"):
        pod = restricted_pod(name, *SLEEP, topologySpreadConstraints=[{**rule, "labelSelector": labels}])
        pod["metadata"]["labels"] |= labels["matchLabels"]
        namespace.apply(pod)
    namespace.wait_ready("one", "two")
    assert {namespace.pod(name).spec.node_name for name in ("one", "two")} == {"node-1", "node-2"}


@pytest.mark.parametrize(
    "program", ["csi-provisioner", "csi-resizer", "csi-snapshotter", "snapshot-controller"]
)
def test_sidecar_image_runs(namespace: Namespace, cluster: Cluster, program: str) -> None:
    """The official sidecars are loaded under their official names and versions, and start."""
    names = {
        name
        for node in cluster.core.list_node().items
        for image in node.status.images
        for name in image.names
    }
    [image] = {name for name in names if name.startswith(f"registry.k8s.io/sig-storage/{program}:")}
    pod = restricted_pod("sidecar", f"/{program}", "--version", image=image)
    namespace.apply(pod)
    assert image.rpartition(":")[2] in namespace.wait_done("sidecar")


def test_missing_image_is_reported(namespace: Namespace) -> None:
    """A pod whose image is nowhere says so instead of hanging without a word."""
    namespace.apply(
        restricted_pod(
            "absent", *SLEEP, image=CLIENT_IMAGE + "-absent", container={"imagePullPolicy": "Never"}
        )
    )

    def reason() -> bool:
        statuses = namespace.pod("absent").status.container_statuses
        return bool(
            statuses and statuses[0].state.waiting and statuses[0].state.waiting.reason == "ErrImageNeverPull"
        )

    wait_for("the reason ErrImageNeverPull", reason)


def test_dra_claim_is_allocated(cluster: Cluster, namespace: Namespace) -> None:
    """The scheduler allocates a device of a ResourceSlice to a pod's claim (resource.k8s.io/v1)."""
    slice_ = """
        apiVersion: resource.k8s.io/v1
        kind: ResourceSlice
        metadata: {name: e2e-slice}
        spec:
          driver: e2e.kube3fs.io
          nodeName: node-2
          pool: {name: node-2, generation: 1, resourceSliceCount: 1}
          devices: [{name: dev0}]
    """
    cluster.apply(slice_)
    cluster.apply(
        """
        apiVersion: resource.k8s.io/v1
        kind: DeviceClass
        metadata: {name: e2e}
        spec: {selectors: [{cel: {expression: "device.driver == 'e2e.kube3fs.io'"}}]}
        """
    )
    requests = [{"name": "device", "exactly": {"deviceClassName": "e2e"}}]
    claim = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "metadata": {"name": "claim"}}
    namespace.apply({**claim, "spec": {"devices": {"requests": requests}}})
    pod = restricted_pod("user", *SLEEP, resourceClaims=[{"name": "device", "resourceClaimName": "claim"}])
    pod["spec"]["containers"][0]["resources"] = {"claims": [{"name": "device"}]}
    namespace.apply(pod)

    claims = cluster.dynamic.resources.get(api_version="resource.k8s.io/v1", kind="ResourceClaim")

    def allocated() -> list[str]:
        status = claims.get(name="claim", namespace=namespace.name).to_dict().get("status") or {}
        return [
            result["device"] for result in status.get("allocation", {}).get("devices", {}).get("results", [])
        ]

    assert wait_for("an allocation", lambda: allocated() or None) == ["dev0"]
    assert wait_for("a node", lambda: namespace.pod("user").spec.node_name) == "node-2"
    cluster.delete(yaml.safe_load(slice_))
