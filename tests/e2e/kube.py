"""A cluster as a test uses it: apply, wait, exec, logs. Every wait has a deadline."""

import textwrap
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeVar

import yaml
from kubernetes import client, dynamic
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream

from tests.cluster.images import REGISTRY, version

Manifest = dict[str, Any]
T = TypeVar("T")

CLIENT_IMAGE = f"{REGISTRY}/client:{version()}"
"""The smallest training pod: Python and /opt/usrbio."""
CSI_IMAGE = f"{REGISTRY}/csi:{version()}"

FIELD_MANAGER = "kube3fs-e2e"


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 60) -> T:
    """The first answer of `look` that is neither None nor False.

    Fails after `seconds` with what `look` raised last, or that it saw nothing. `look` may raise
    AssertionError, which says best what is missing, or ApiException, for what is not there yet.
    """
    deadline = time.monotonic() + seconds
    while True:
        seen: object = "nothing"
        try:
            answer = look()
            if answer is not None and answer is not False:
                return answer
        except (AssertionError, ApiException) as error:
            seen = error
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not so after {seconds:.0f} s; last seen: {seen}")
        time.sleep(0.2)


class ExecFailed(Exception):
    """A command in a container ended with an exit code other than 0."""

    def __init__(self, argv: Iterable[str], code: int, output: str) -> None:
        super().__init__(f"`{' '.join(argv)}` ended with {code}: {output.strip()}")
        self.code = code
        self.output = output


class Cluster:
    """The clients of one API server, as one user."""

    def __init__(self, api: client.ApiClient) -> None:
        self.api = api
        # Any: its models declare every field optional, also those that the server always sets.
        self.core: Any = client.CoreV1Api(api)

    @cached_property
    def dynamic(self) -> dynamic.DynamicClient:
        """For every kind, custom ones too."""
        return dynamic.DynamicClient(self.api)

    def apply(
        self, manifests: str | Manifest | Iterable[Manifest], namespace: str | None = None
    ) -> list[Any]:
        """Server-side apply of YAML text, one manifest or several. Returns the objects of the server."""
        applied = []
        for manifest in _manifests(manifests):
            resource = self._resource(manifest)
            applied.append(
                resource.server_side_apply(
                    body=manifest,
                    name=manifest["metadata"]["name"],
                    namespace=manifest["metadata"].get("namespace", namespace)
                    if resource.namespaced
                    else None,
                    field_manager=FIELD_MANAGER,
                    force_conflicts=True,
                )
            )
        return applied

    def delete(self, manifest: Manifest, namespace: str | None = None) -> None:
        """Delete an object, and return at once; one that is gone already is fine."""
        resource = self._resource(manifest)
        try:
            resource.delete(
                name=manifest["metadata"]["name"], namespace=namespace if resource.namespaced else None
            )
        except ApiException as error:
            if error.status != 404:
                raise

    def _resource(self, manifest: Manifest) -> Any:
        return self.dynamic.resources.get(api_version=manifest["apiVersion"], kind=manifest["kind"])


@dataclass(frozen=True)
class Namespace:
    """A namespace of a test's own."""

    cluster: Cluster
    name: str

    def apply(self, manifests: str | Manifest | Iterable[Manifest]) -> list[Any]:
        return self.cluster.apply(manifests, self.name)

    def delete(self, manifest: Manifest) -> None:
        self.cluster.delete(manifest, self.name)

    def pod(self, name: str) -> Any:
        return self.cluster.core.read_namespaced_pod(name, self.name)

    def wait_ready(self, *names: str, seconds: float = 60) -> None:
        """Wait until the pods are Ready."""
        for name in names:
            wait_for(f"pod {name} Ready", partial(self._ready, name), seconds)

    def _ready(self, name: str) -> bool:
        return _ready(self.pod(name))

    def wait_done(self, name: str, seconds: float = 60) -> str:
        """Wait until the pod has succeeded. Returns its log; fails at once when it failed."""
        pod = wait_for(f"pod {name} done", lambda: _ended(self.pod(name)), seconds)
        log = self.logs(name)
        assert pod.status.phase == "Succeeded", f"pod {name} failed: {log}"
        return log

    def wait_gone(self, name: str, seconds: float = 60) -> None:
        """Wait until there is no such pod."""

        def gone() -> bool:
            try:
                pod = self.pod(name)
            except ApiException as error:
                return bool(error.status == 404)
            raise AssertionError(f"still there, {pod.status.phase}")

        wait_for(f"pod {name} gone", gone, seconds)

    def logs(self, name: str, container: str | None = None) -> str:
        log: str = self.cluster.core.read_namespaced_pod_log(name, self.name, container=container)
        return log

    def exec(self, name: str, *argv: str, container: str | None = None, seconds: float = 60) -> str:
        """What a command in the pod printed, stdout and stderr. ExecFailed when its exit code is not 0."""
        call = self.cluster.core.connect_get_namespaced_pod_exec
        more = {} if container is None else {"container": container}
        shell = stream(
            call,
            name,
            self.name,
            command=list(argv),
            stdout=True,
            stderr=True,
            _preload_content=False,
            **more,
        )
        try:
            shell.run_forever(timeout=seconds)
            code = shell.returncode  # before read_all, which forgets it
            output: str = shell.read_all()
            if code is None:
                raise AssertionError(
                    f"`{' '.join(argv)}` in {name} took more than {seconds:.0f} s: {output.strip()}"
                )
            if code:
                raise ExecFailed(argv, code, output)
            return output
        finally:
            shell.sock.shutdown()  # close() leaves a connection open that the other end closed first


def restricted_pod(name: str, *command: str, image: str = CLIENT_IMAGE, **spec: Any) -> Manifest:
    """A pod that the *restricted* Pod Security level admits: uid 1000 and nothing that it could do harm with.

    `spec` adds to the pod's spec; keys of the container go into it as `container={...}`.
    """
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        **spec.pop("container", {}),
    }
    return _pod(
        name,
        {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 1000,
                "runAsGroup": 1000,
                "fsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            **spec,
        },
    )


def privileged_pod(name: str, *command: str, image: str = CSI_IMAGE, **spec: Any) -> Manifest:
    """A pod that may do everything to its node, as a node plugin; parameters as of `restricted_pod`."""
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "securityContext": {"privileged": True},
        **spec.pop("container", {}),
    }
    return _pod(name, {"containers": [container], **spec})


SLEEP = ("sleep", "infinity")
"""The command of a pod that waits to be told by `exec` what to do."""


def _pod(name: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        # `sleep` and Python as pid 1 ignore SIGTERM. Not 0: that deletes the pod before its volumes.
        "spec": {"terminationGracePeriodSeconds": 1, "restartPolicy": "Never", **spec},
    }


def _manifests(given: str | Manifest | Iterable[Manifest]) -> list[Manifest]:
    if isinstance(given, str):
        return [manifest for manifest in yaml.safe_load_all(textwrap.dedent(given)) if manifest]
    return [given] if isinstance(given, dict) else list(given)


def _ready(pod: Any) -> bool:
    conditions = {condition.type: condition for condition in pod.status.conditions or []}
    if "Ready" in conditions and conditions["Ready"].status == "True":
        return True
    raise AssertionError(describe(pod))


def _ended(pod: Any) -> Any:
    assert pod.status.phase in ("Succeeded", "Failed"), describe(pod)
    return pod


def describe(pod: Any) -> str:
    """A pod's state in one line: phase, what its containers wait for or died of, what the scheduler says."""
    parts = [f"{pod.metadata.namespace}/{pod.metadata.name} {pod.status.phase} on {pod.spec.node_name}"]
    for status in [*(pod.status.init_container_statuses or []), *(pod.status.container_statuses or [])]:
        state = status.state.waiting or status.state.terminated
        if state:
            parts.append(f"{status.name}: {state.reason} {state.message or ''}".strip())
    for condition in pod.status.conditions or []:
        if condition.status != "True" and condition.message:
            parts.append(condition.message)
    return "; ".join(parts)
