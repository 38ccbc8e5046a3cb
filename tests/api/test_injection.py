"""The chart's admission policies on the real API server: what a labelled pod becomes, and what is refused."""

import copy
import json
import re
import time
from collections import Counter
from typing import Any

import pytest

from .kube import Body, Refused, create, kubectl

pytestmark = pytest.mark.usefixtures("policies")

SHM, CLIENT = "kube3fs-shm", "kube3fs-client"
IMAGE = "none"
RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def container(name: str, **more: Any) -> Body:
    return {"name": name, "image": IMAGE, "securityContext": RESTRICTED, **more}


def pod(namespace: str, *, label: str | None = "true", init: tuple[Body, ...] = (), **more: Any) -> Body:
    """A pod for the restricted Pod Security Standard. Keywords with kube3fs_ are annotations."""
    annotations = {
        f"kube3fs.io/{k[8:].replace('_', '-')}": v for k, v in more.items() if k.startswith("kube3fs_")
    }
    spec: Body = {"containers": more.get("containers", [container("main")])}
    if init:
        spec["initContainers"] = list(init)
    if "volumes" in more:
        spec["volumes"] = more["volumes"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "trainer",
            "namespace": namespace,
            "labels": {"kube3fs.io/inject": label} if label is not None else {},
            "annotations": annotations,
        },
        "spec": spec,
    }


def mounts(made: Body, name: str) -> dict[str, str]:
    """Mount path → volume of one container, without what Kubernetes adds."""
    spec = made["spec"]
    found = next(c for c in [*spec["containers"], *spec.get("initContainers", [])] if c["name"] == name)
    return {
        m["mountPath"]: m["name"] for m in found.get("volumeMounts", []) if "kube-api-access" not in m["name"]
    }


def volumes(made: Body) -> dict[str, Body]:
    return {v["name"]: v for v in made["spec"].get("volumes", []) if "kube-api-access" not in v["name"]}


INJECTED = {"/dev/shm": SHM, "/opt/usrbio": CLIENT}


def test_a_labelled_pod_gets_memory_and_library(namespace: str) -> None:
    """Both volumes, mounted where programs look for them, in a namespace that is restricted."""
    made, warnings = create(pod(namespace))
    assert mounts(made, "main") == INJECTED
    assert volumes(made)[SHM]["csi"] == {
        "driver": "csi.kube3fs.io",
        "volumeAttributes": {"csi.kube3fs.io/kind": "shm", "csi.kube3fs.io/size": "1Gi"},
    }
    assert volumes(made)[CLIENT]["csi"] == {
        "driver": "csi.kube3fs.io",
        "readOnly": True,
        "volumeAttributes": {"csi.kube3fs.io/kind": "client"},
    }
    assert not warnings


@pytest.mark.parametrize("label", [None, "false"], ids=["no-label", "false"])
def test_other_pods_are_left_alone(namespace: str, label: str | None) -> None:
    """Without the label, or with it switched off, nothing is added."""
    made, _ = create(pod(namespace, label=label))
    assert mounts(made, "main") == {}
    assert volumes(made) == {}


def test_every_kind_of_container_is_injected(namespace: str) -> None:
    """Main containers, init containers and sidecars alike."""
    side = container("side", restartPolicy="Always")
    made, _ = create(
        pod(namespace, init=(container("prepare"), side), containers=[container("main"), container("second")])
    )
    for name in ("main", "second", "prepare", "side"):
        assert mounts(made, name) == INJECTED, name


def test_only_named_containers_are_injected(namespace: str) -> None:
    """The annotation names them, spaces and all; the others stay as they are."""
    made, _ = create(
        pod(
            namespace,
            init=(container("prepare"),),
            containers=[container("main"), container("second")],
            kube3fs_containers="second , prepare",
        )
    )
    assert mounts(made, "main") == {}
    assert mounts(made, "second") == INJECTED
    assert mounts(made, "prepare") == INJECTED


def test_the_annotation_sets_the_size(namespace: str) -> None:
    """/dev/shm gets the size that the user asked for."""
    made, _ = create(pod(namespace, kube3fs_shm_size="64Mi"))
    assert volumes(made)[SHM]["csi"]["volumeAttributes"]["csi.kube3fs.io/size"] == "64Mi"


def test_rdma_devices_on_request(namespace: str) -> None:
    """The device resource beside the container's own resources."""
    own = {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}
    made, _ = create(
        pod(
            namespace,
            containers=[container("main", resources=own)],
            init=(container("p"),),
            kube3fs_rdma="true",
        )
    )
    resources = made["spec"]["containers"][0]["resources"]
    assert resources["limits"] == {"cpu": "2", "memory": "1Gi", "kube3fs.io/rdma": "1"}
    assert resources["requests"] == {"cpu": "1", "memory": "1Gi", "kube3fs.io/rdma": "1"}
    assert made["spec"]["initContainers"][0]["resources"]["limits"] == {"kube3fs.io/rdma": "1"}


@pytest.mark.parametrize("value", [None, "false"], ids=["absent", "false"])
def test_no_rdma_device_unless_asked(namespace: str, value: str | None) -> None:
    """No device resource appears by itself: a node without RDMA can run the pod."""
    made, _ = create(pod(namespace, kube3fs_rdma=value) if value else pod(namespace))
    assert made["spec"]["containers"][0].get("resources", {}) == {}


def test_nothing_else_is_changed(namespace: str) -> None:
    """Everything that the user wrote is in the pod as it was."""
    asked = pod(
        namespace,
        init=(container("prepare", env=[{"name": "A", "value": "1"}]),),
        containers=[
            container(
                "main",
                command=["python3", "train.py"],
                env=[{"name": "LD_LIBRARY_PATH", "value": "/usr/lib"}],
                ports=[{"containerPort": 80, "name": "http", "protocol": "TCP"}],
                volumeMounts=[{"name": "data", "mountPath": "/data", "readOnly": True}],
                workingDir="/work",
            ),
            container("second", volumeMounts=[{"name": "data", "mountPath": "/other"}]),
        ],
        volumes=[{"name": "data", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "tmp", "emptyDir": {}}],
    )
    injected, _ = create(asked)
    plain, _ = create(copy.deepcopy(asked) | {"metadata": {**asked["metadata"], "labels": {}}})
    assert stripped(injected) == stripped(plain)


def stripped(made: Body) -> Body:
    """The spec without what injection adds and what Kubernetes names at random."""
    spec: Body = json.loads(json.dumps(made["spec"]))
    spec["volumes"] = [
        v for v in spec["volumes"] if v["name"] not in (SHM, CLIENT) and "api-access" not in v["name"]
    ]
    for one in [*spec["containers"], *spec.get("initContainers", [])]:
        one["volumeMounts"] = [
            m for m in one["volumeMounts"] if m["name"] not in (SHM, CLIENT) and "api-access" not in m["name"]
        ]
    return spec


def copied(once: Body, namespace: str, **more: Any) -> Body:
    """A pod from the description of one that runs, as `kubectl get -o yaml` gives it."""
    again = pod(namespace, **more)
    again["spec"] = {
        "containers": [
            {**c, "volumeMounts": [m for m in c["volumeMounts"] if "api-access" not in m["name"]]}
            for c in once["spec"]["containers"]
        ],
        "volumes": list(volumes(once).values()),
    }
    return again


def test_injecting_twice_changes_nothing(namespace: str) -> None:
    """A pod made from the description of an injected one is the same."""
    sizes: list[dict[str, Any]] = [{}, {"kube3fs_shm_size": "64Mi"}]
    for size in sizes:
        once, _ = create(pod(namespace, **size))
        twice, warnings = create(copied(once, namespace, **size))
        assert mounts(twice, "main") == INJECTED
        assert volumes(twice) == volumes(once)
        assert not warnings


def test_a_size_in_other_words_is_the_same(namespace: str) -> None:
    """65536Ki are 64Mi."""
    once, _ = create(pod(namespace, kube3fs_shm_size="64Mi"))
    create(copied(once, namespace, kube3fs_shm_size="65536Ki"))


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (
            {"kube3fs_shm_size": "256Mi"},
            '"64Mi", and "256Mi" is asked for by the annotation kube3fs.io/shm-size',
        ),
        ({}, '"64Mi", and "1Gi" is asked for by default'),
    ],
    ids=["annotation", "default"],
)
def test_a_copied_volume_of_another_size_is_refused(namespace: str, size: Any, words: str) -> None:
    """The size that the user wrote is not ignored."""
    once, _ = create(pod(namespace, kube3fs_shm_size="64Mi"))
    with pytest.raises(Refused, match=words) as refusal:
        create(copied(once, namespace, **size))
    assert "remove the volume with its mounts" in str(refusal.value)


OTHER_VOLUMES = {
    "client-as-shm": ({"name": SHM, "csi": {"volumeAttributes": {"csi.kube3fs.io/kind": "client"}}}, SHM),
    "scratch-as-shm": ({"name": SHM, "csi": {"volumeAttributes": {"csi.kube3fs.io/kind": "scratch"}}}, SHM),
    "read-only-shm": (
        {
            "name": SHM,
            "csi": {
                "readOnly": True,
                "volumeAttributes": {"csi.kube3fs.io/kind": "shm", "csi.kube3fs.io/size": "1Gi"},
            },
        },
        SHM,
    ),
    "shm-without-size": ({"name": SHM, "csi": {"volumeAttributes": {"csi.kube3fs.io/kind": "shm"}}}, SHM),
    "no-attributes": ({"name": SHM, "csi": {}}, SHM),
    "shm-as-client": (
        {
            "name": CLIENT,
            "csi": {
                "readOnly": True,
                "volumeAttributes": {"csi.kube3fs.io/kind": "shm", "csi.kube3fs.io/size": "1Gi"},
            },
        },
        CLIENT,
    ),
    "writable-client": (
        {"name": CLIENT, "csi": {"volumeAttributes": {"csi.kube3fs.io/kind": "client"}}},
        CLIENT,
    ),
}


@pytest.mark.parametrize(("volume", "name"), OTHER_VOLUMES.values(), ids=OTHER_VOLUMES.keys())
def test_a_volume_of_our_name_must_be_what_would_be_added(namespace: str, volume: Body, name: str) -> None:
    """Whatever it says instead, the user reads that it is not what he gets."""
    volume = {**volume, "csi": {"driver": "csi.kube3fs.io", **volume["csi"]}}
    with pytest.raises(Refused, match=f"the volume {name} "):
        create(pod(namespace, volumes=[volume]))


def test_a_memory_limit_below_the_shared_memory_is_told(namespace: str) -> None:
    """It counts as the container's memory: filling it is the end of the container."""
    small = container("main", resources={"limits": {"memory": "512Mi"}})
    made, warnings = create(pod(namespace, containers=[small]))
    assert mounts(made, "main") == INJECTED
    assert "container main has a memory limit below the 1Gi of /dev/shm" in warnings
    wishes: list[dict[str, Any]] = [{"kube3fs_shm_size": "512Mi"}, {"kube3fs_containers": "other"}]
    for enough in wishes:
        containers = [small, container("other")]
        assert not create(pod(namespace, containers=containers, **enough))[1]


def workload(namespace: str, kind: str, template: Body) -> Body:
    """A workload of that kind which makes such pods."""
    labels = {**template["metadata"]["labels"], "app": "x"}
    made = {
        "metadata": {"labels": labels, "annotations": template["metadata"]["annotations"]},
        "spec": copy.deepcopy(template["spec"]),
    }
    spec: Body = {"template": made}
    if kind in ("Job", "CronJob"):
        made["spec"]["restartPolicy"] = "Never"
    elif kind == "ReplicationController":
        spec["selector"] = {"app": "x"}
    else:
        spec["selector"] = {"matchLabels": {"app": "x"}}
    if kind == "StatefulSet":
        spec["serviceName"] = "x"
    if kind == "CronJob":
        spec = {"schedule": "0 0 * * *", "jobTemplate": {"spec": spec}}
    group = {"Job": "batch/v1", "CronJob": "batch/v1", "ReplicationController": "v1"}.get(kind, "apps/v1")
    return {
        "apiVersion": group,
        "kind": kind,
        "metadata": {"name": "work", "namespace": namespace},
        "spec": spec,
    }


KINDS = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob"]
OWN_SHM: dict[str, Any] = {
    "containers": [container("main", volumeMounts=[{"name": "own", "mountPath": "/dev/shm"}])],
    "volumes": [{"name": "own", "emptyDir": {"medium": "Memory"}}],
}


@pytest.mark.parametrize("kind", KINDS)
def test_who_applies_a_workload_is_told_of_its_pods(namespace: str, kind: str) -> None:
    """What surprises of its pods, and what will be refused of them; nothing of those that are well."""
    _, warnings = create(workload(namespace, kind, pod(namespace, **OWN_SHM)))
    assert "kube3fs.io/inject does nothing here: container main mounts its own /dev/shm" in warnings
    _, warnings = create(workload(namespace, kind, pod(namespace, kube3fs_shm_size="big")))
    assert '"big" is not a quantity' in warnings
    once, _ = create(pod(namespace, kube3fs_shm_size="64Mi"))
    _, warnings = create(workload(namespace, kind, copied(once, namespace, kube3fs_shm_size="256Mi")))
    assert '"256Mi" is asked for' in warnings
    for fine in (
        pod(namespace),
        pod(namespace, label=None, **OWN_SHM),
        pod(namespace, label="false", **OWN_SHM),
    ):
        _, warnings = create(workload(namespace, kind, fine))
        assert "kube3fs" not in warnings


@pytest.mark.parametrize("path", ["/dev/shm", "/dev/shm/"], ids=["plain", "trailing-slash"])
def test_a_pod_with_its_own_dev_shm_is_left_alone_with_a_warning(namespace: str, path: str) -> None:
    """The usual emptyDir in memory stays, and the user reads why rings will not work."""
    made, warnings = create(
        pod(
            namespace,
            containers=[
                container("main", volumeMounts=[{"name": "own", "mountPath": path}]),
                container("second"),
            ],
            volumes=[{"name": "own", "emptyDir": {"medium": "Memory"}}],
        )
    )
    assert mounts(made, "main") == {path: "own"}
    assert mounts(made, "second") == {}
    assert "kube3fs.io/inject does nothing here: container main mounts its own /dev/shm" in warnings
    assert "kube3fs.io/containers" in warnings


def test_the_other_containers_of_such_a_pod_can_be_named(namespace: str) -> None:
    """What the warning advises works."""
    made, warnings = create(
        pod(
            namespace,
            containers=[
                container("main", volumeMounts=[{"name": "own", "mountPath": "/dev/shm"}]),
                container("second"),
            ],
            volumes=[{"name": "own", "emptyDir": {"medium": "Memory"}}],
            kube3fs_containers="second",
        )
    )
    assert mounts(made, "main") == {"/dev/shm": "own"}
    assert mounts(made, "second") == INJECTED
    assert not warnings


def test_an_own_library_folder_is_kept_with_a_warning(namespace: str) -> None:
    """A user who brings /opt/usrbio keeps it and gets the memory all the same."""
    made, warnings = create(
        pod(
            namespace,
            containers=[container("main", volumeMounts=[{"name": "own", "mountPath": "/opt/usrbio"}])],
            volumes=[{"name": "own", "emptyDir": {}}],
        )
    )
    assert mounts(made, "main") == {"/opt/usrbio": "own", "/dev/shm": SHM}
    assert "mounts its own /opt/usrbio" in warnings


REFUSED = {
    "label-yes": ({"label": "yes"}, 'label kube3fs.io/inject: "yes" means nothing; write "true"'),
    "label-empty": ({"label": ""}, 'label kube3fs.io/inject: "" means nothing'),
    "size-word": (
        {"kube3fs_shm_size": "big"},
        'kube3fs.io/shm-size: "big" is not a quantity; write for example "8Gi"',
    ),
    "size-empty": ({"kube3fs_shm_size": ""}, 'kube3fs.io/shm-size: "" is not a quantity'),
    "size-spaces": ({"kube3fs_shm_size": "8 Gi"}, "is not a quantity"),
    # The API server would compare it for minutes.
    "size-huge": ({"kube3fs_shm_size": "1e99999999"}, '"1e99999999" is not a quantity'),
    "size-many-digits": ({"kube3fs_shm_size": "9" * 1000}, "is not a quantity"),
    "size-zero": ({"kube3fs_shm_size": "0"}, 'kube3fs.io/shm-size: "0" is too small; write at least "1Mi"'),
    "size-negative": ({"kube3fs_shm_size": "-1Gi"}, "is not a quantity"),
    "size-milli": ({"kube3fs_shm_size": "100m"}, "is too small"),
    "rdma-word": ({"kube3fs_rdma": "mlx5_0"}, 'kube3fs.io/rdma: "mlx5_0" means nothing; write "true"'),
    "rdma-empty": ({"kube3fs_rdma": ""}, 'kube3fs.io/rdma: "" means nothing'),
    "containers-unknown": (
        {"kube3fs_containers": "main,trainer"},
        'the pod has no container "trainer"; write names out of main, separated by commas',
    ),
    "containers-empty": ({"kube3fs_containers": ""}, 'the pod has no container ""'),
    "containers-comma": ({"kube3fs_containers": "main,"}, 'the pod has no container ""'),
    "volume-name": (
        {"volumes": [{"name": "kube3fs-shm", "emptyDir": {}}]},
        "the volume names kube3fs-shm and kube3fs-client are taken",
    ),
}


@pytest.mark.parametrize(("wish", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_wrong_wish_is_refused_with_what_to_write(namespace: str, wish: Any, message: str) -> None:
    """The user reads what was wrong when the pod is made, not in a log later."""
    with pytest.raises(Refused) as refusal:
        create(pod(namespace, **wish))
    assert message in str(refusal.value)


def test_pods_of_a_deployment_are_injected(namespace: str) -> None:
    """The policy sees pods, whoever makes them."""
    template = pod(namespace, kube3fs_shm_size="64Mi")
    spec = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "set", "namespace": namespace},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "x"}},
            "template": {
                "metadata": {
                    "labels": {"app": "x", "kube3fs.io/inject": "true"},
                    "annotations": template["metadata"]["annotations"],
                },
                "spec": template["spec"],
            },
        },
    }
    kubectl("apply", "-f", "-", stdin=json.dumps(spec))
    deadline = time.monotonic() + 30
    items: list[Body] = []
    while not items and time.monotonic() < deadline:
        items = json.loads(kubectl("get", "pods", "-n", namespace, "-l", "app=x", "-o", "json"))["items"]
        time.sleep(0.1)
    assert mounts(items[0], "main") == INJECTED


BUCKET = re.compile(
    r"apiserver_(?:mutating|validating)_admission_policy_check_duration_seconds_bucket"
    r'\{[^}]*policy="inject[^"]*"[^}]*le="(?P<le>[^"]+)"\} (?P<count>\d+)'
)


def test_admission_costs_little(namespace: str) -> None:
    """By the API server's own clock 99 of 100 evaluations of our policies take less than 10 ms."""
    before = evaluations()
    for _ in range(100):
        create(pod(namespace, kube3fs_shm_size="64Mi"))
    after = evaluations()
    quick, every = (after[le] - before[le] for le in ("0.01", "+Inf"))
    assert every >= 100
    assert quick >= 0.99 * every, f"{every - quick} of {every} took longer"


def evaluations() -> Counter[str]:
    """How many evaluations of our policies took at most so many seconds."""
    counts: Counter[str] = Counter()
    for match in BUCKET.finditer(kubectl("get", "--raw", "/metrics")):
        counts[match["le"]] += int(match["count"])
    return counts
