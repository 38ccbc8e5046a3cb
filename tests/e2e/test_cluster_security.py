"""The cluster itself: the API server's own guards are on, and it reaches webhooks."""

import base64
import os
import subprocess
import textwrap
from pathlib import Path

import pytest
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from tests.e2e.kube import Cluster, Namespace, restricted_pod, wait_for

_WEBHOOK = textwrap.dedent(
    """
    import http.server, json, ssl

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = {"message": "the webhook was asked"}
            review["response"] = {"uid": review["request"]["uid"], "allowed": False, "status": status}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(review).encode())

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain("/tls/tls.crt", "/tls/tls.key")
    server = http.server.HTTPServer(("", 8443), Refuse)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()
    """
)


@pytest.fixture
def kubelet_of_node_2(cluster: Cluster) -> client.CoreV1Api:
    """The API as the kubelet of node-2 may use it."""
    path = Path(os.environ["KUBE3FS_CLUSTER"], "kubeconfigs", "node-2")
    return client.CoreV1Api(config.new_client_from_config(str(path)))


def test_kubelet_may_not_touch_another_node(kubelet_of_node_2: client.CoreV1Api) -> None:
    """NodeRestriction: a kubelet changes its own node only."""
    body = {"metadata": {"annotations": {"e2e.kube3fs.io/touched": "yes"}}}
    kubelet_of_node_2.patch_node("node-2", body)
    with pytest.raises(ApiException, match="not allowed to modify node") as refused:
        kubelet_of_node_2.patch_node("node-1", body)
    assert refused.value.status == 403


def test_kubelet_may_not_read_foreign_secrets(
    namespace: Namespace, kubelet_of_node_2: client.CoreV1Api
) -> None:
    """The Node authorizer: a kubelet reads the secrets of its own pods only."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "foreign"},
        "stringData": {"key": "value"},
    }
    namespace.apply(secret)
    with pytest.raises(ApiException, match="no relationship found") as refused:
        kubelet_of_node_2.read_namespaced_secret("foreign", namespace.name)
    assert refused.value.status == 403


def test_webhook_is_reached(cluster: Cluster, namespace: Namespace, tmp_path: Path) -> None:
    """The API server asks a webhook behind a service, on any node."""
    names = f"subjectAltName=DNS:webhook.{namespace.name}.svc"
    files = ("-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt"))
    openssl = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    openssl += ["-days", "1", "-subj", "/CN=webhook", "-addext", names, *files]
    subprocess.run(openssl, check=True, capture_output=True)
    tls = {name: (tmp_path / name).read_text() for name in ("tls.crt", "tls.key")}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "stringData": tls}
    mount = {"volumeMounts": [{"name": "tls", "mountPath": "/tls"}]}
    volumes = [{"name": "tls", "secret": {"secretName": "tls"}}]
    pod = restricted_pod(
        "webhook", "python3", "-c", _WEBHOOK, nodeName="node-2", container=mount, volumes=volumes
    )
    service = {"selector": {"app": "webhook"}, "ports": [{"port": 443, "targetPort": 8443}]}
    namespace.apply(
        [
            secret,
            pod,
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "webhook"}, "spec": service},
        ]
    )
    namespace.wait_ready("webhook")
    hook = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": namespace.name},
        "webhooks": [
            {
                "name": "refuse.e2e.kube3fs.io",
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
                "timeoutSeconds": 5,
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace.name}},
                "rules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "resources": ["configmaps"],
                        "operations": ["CREATE"],
                    }
                ],
                "clientConfig": {
                    "caBundle": base64.b64encode(tls["tls.crt"].encode()).decode(),
                    "service": {"namespace": namespace.name, "name": "webhook"},
                },
            }
        ],
    }
    cluster.apply(hook)
    number = iter(range(1000))

    def refused() -> str | None:
        body = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"try-{next(number)}"))
        try:
            cluster.core.create_namespaced_config_map(namespace.name, body)
        except ApiException as error:
            return str(error.body) if "the webhook was asked" in str(error.body) else None
        return None

    try:
        wait_for("a refusal by the webhook", refused)
    finally:
        cluster.delete(hook)
