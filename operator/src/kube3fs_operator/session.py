"""How our programs reach the API server."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kubernetes.aio import client, config


@asynccontextmanager
async def api_session() -> AsyncIterator[client.ApiClient]:
    """A client by the pod's service account, or by KUBECONFIG outside a cluster."""
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        config.load_incluster_config()
    else:
        await config.load_kube_config()
    async with client.ApiClient() as api_client:
        yield api_client
