"""As much of a Kubernetes client as waiting for a cluster needs: GET, with nothing installed."""

import http.client
import json
import ssl
import urllib.error
import urllib.request
from base64 import b64decode
from pathlib import Path
from typing import Any


class Api:
    """The API server, as the user of a kubeconfig that `pki.make` wrote."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server = cluster["server"]
        self._token = config["users"][0]["user"]["token"]
        authority = b64decode(cluster["certificate-authority-data"]).decode()
        https = urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=authority))
        # No proxy of the environment knows the cluster's network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), https)

    def ready(self) -> bool:
        """Whether the API server says that it is ready."""
        return self._get("/readyz") is not None

    def exists(self, path: str) -> bool:
        return self._get(path) is not None

    def object(self, path: str) -> dict[str, Any] | None:
        """The object at `path`, or None when the server does not answer or does not know it."""
        answer = self._get(path)
        return None if answer is None else json.loads(answer)

    def node_is_ready(self, name: str) -> bool:
        node = self.object(f"/api/v1/nodes/{name}") or {}
        conditions = node.get("status", {}).get("conditions", [])
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def _get(self, path: str) -> bytes | None:
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(self._server + path, headers=headers)  # noqa: S310 - our own https://
        try:
            with self._opener.open(request, timeout=5) as answer:
                body: bytes = answer.read()
                return body
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            return None
