"""A labelled pod that will not have what its user thinks gets an event, whoever made it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from csikit.apiserver import ApiServer, Body
from csikit.waiting import eventually

from kube3fs_csi.controller.injection import InjectionEvents, findings
from kube3fs_csi.kube.api import connected

SHM = {
    "name": "kube3fs-shm",
    "csi": {"driver": "csi.kube3fs.io", "volumeAttributes": {"csi.kube3fs.io/size": "1Gi"}},
}


def container(name: str = "main", volume: str = "kube3fs-shm", limit: str | None = None) -> Body:
    limits = {} if limit is None else {"resources": {"limits": {"memory": limit}}}
    return {"name": name, "volumeMounts": [{"mountPath": "/dev/shm", "name": volume}], **limits}


def pod(*containers: Body, name: str = "trainer", **more: Any) -> Body:
    return {
        "metadata": {
            "namespace": "team", "name": name, "uid": f"uid-{name}",
            "labels": {"kube3fs.io/inject": "true"}, "annotations": more.get("annotations"),
        },
        "spec": {"containers": list(containers), "initContainers": more.get("init", []), "volumes": [SHM]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "reasons"),
    [
        pytest.param(pod(container()), [], id="injected"),
        pytest.param(pod(container(volume="own")), ["NotInjected"], id="its own shm"),
        pytest.param(pod(container(), init=[container("a", "own")]), ["NotInjected"], id="init container"),
        pytest.param(
            pod(container(), container("other", "own"), annotations={"kube3fs.io/containers": " main "}),
            [],
            id="own shm where nothing was asked",
        ),
        pytest.param(pod(container(limit="512Mi")), ["SharedMemoryAboveLimit"], id="limit below"),
        pytest.param(pod(container(limit="1Gi")), [], id="limit as large"),
        pytest.param(pod(container(limit="no quantity")), [], id="odd limit"),
        pytest.param(pod({"name": "bare"}), [], id="no mounts"),
    ],
)
def test_what_is_said_of_a_pod(seen: Body, reasons: list[str]) -> None:
    """Only what surprises."""
    assert [finding.reason for finding in findings(seen)] == reasons


async def test_each_event_is_written_once_by_however_many(tmp_path: Path) -> None:
    """For pods that were there before and that come later; a broken pod does not end it."""
    async with ApiServer().running() as server, connected(str(server.kubeconfig(tmp_path / "kube"))) as api:
        await server.put("pods", pod(container(volume="own"), name="before"))
        running = [asyncio.create_task(InjectionEvents(api).run()) for _ in range(2)]

        def told() -> set[tuple[str, str]]:
            events = [body for (plural, *_), body in server.objects.items() if plural == "events"]
            assert len({body["metadata"]["name"] for body in events}) == len(events)
            return {(body["involvedObject"]["name"], body["reason"]) for body in events}

        try:
            await eventually(lambda: told() == {("before", "NotInjected")})
            await server.put("pods", pod(container(limit="64Mi"), name="later"))
            await server.put("pods", pod(container(), name="fine"))
            await eventually(
                lambda: told() == {("before", "NotInjected"), ("later", "SharedMemoryAboveLimit")}
            )
        finally:
            for task in running:
                task.cancel()
