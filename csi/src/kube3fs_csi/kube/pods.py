"""What the kubelet does not tell a CSI driver about a pod."""

from urllib.parse import quote

from kube3fs_csi.kube.api import Api
from kube3fs_csi.node.state import Pod
from kube3fs_csi.serving.errors import NotFound

_SECONDS = 3.0


async def has_user_namespace(api: Api, pod: Pod) -> bool:
    """Whether the pod has `hostUsers: false`. One that the API server does not know has not."""
    if not pod.name:
        return False
    path = f"/api/v1/namespaces/{quote(pod.namespace, safe='')}/pods/{quote(pod.name, safe='')}"
    try:
        found = await api.request(f"pod {pod.namespace}/{pod.name}", "GET", path, seconds=_SECONDS)
    except NotFound:
        return False
    return found["spec"].get("hostUsers") is False
