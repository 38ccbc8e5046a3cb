"""What the two processes are told on their command lines."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kube3fs_crds.quantity import MOST_BYTES


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{text[:100]!r} is no regular expression: {error}") from error
    return text


class ControllerSettings(BaseModel):
    """`kube3fs-csi controller`."""

    model_config = ConfigDict(frozen=True)

    endpoint: Path
    kubeconfig: str = ""
    health_port: int = Field(ge=0, le=65535)


class NodeSettings(BaseModel):
    """`kube3fs-csi node`."""

    model_config = ConfigDict(frozen=True)

    node_name: str = Field(min_length=1, max_length=253)
    namespace: str = Field(min_length=1, max_length=63)
    kubelet_dir: Path
    usrbiod: Path
    data_dirs: tuple[Path, ...] = Field(min_length=1)
    client_source: Path | None
    max_shm_bytes: int = Field(gt=0, le=MOST_BYTES)
    max_volumes: int = Field(ge=0, le=2**31 - 1)
    rdma: bool
    rdma_devices: Annotated[str, AfterValidator(_pattern)]
    rdma_shares: int = Field(ge=1, le=1000)
    cdi_dir: Path
    sysfs: Path
    kubernetes: bool
    kubeconfig: str = ""
    clusters: tuple[tuple[str, Path], ...]
    health_port: int = Field(ge=0, le=65535)

    @property
    def state_dir(self) -> Path:
        """Where the plugin keeps its state, in the kubelet's folder: mounts there reach the node."""
        return self.kubelet_dir / "plugins/csi.kube3fs.io"

    @property
    def endpoint(self) -> Path:
        """Socket of the CSI services."""
        return self.state_dir / "csi.sock"

    @property
    def registration(self) -> Path:
        """Socket where the kubelet finds out about the driver."""
        return self.kubelet_dir / "plugins_registry/csi.kube3fs.io-reg.sock"
