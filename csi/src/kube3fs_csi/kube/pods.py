"""What the kubelet does not tell a CSI driver about a pod."""

import logging

from kubernetes.aio import client

from kube3fs_csi.kube.objects import translated
from kube3fs_csi.node.state import Pod
from kube3fs_csi.serving.errors import CsiError

log = logging.getLogger(__name__)

_SECONDS = 3.0


async def has_user_namespace(api: client.ApiClient, pod: Pod) -> bool:
    """Whether the pod has `hostUsers: false`. No, if the API server does not say: such pods are few."""
    if not pod.name:
        return False
    try:
        with translated(f"pod {pod.namespace}/{pod.name}"):
            found = await client.CoreV1Api(api).read_namespaced_pod(
                pod.name, pod.namespace, _request_timeout=_SECONDS
            )
    except CsiError as error:
        log.warning("%s; taken as a pod without users of its own", error)
        return False
    return found.spec is not None and found.spec.host_users is False
