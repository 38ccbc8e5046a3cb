"""What the chart tells the operator, by environment variables."""

import os
import socket
from collections.abc import Mapping

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

PREFIX = "KUBE3FS_"


class Settings(BaseModel):
    """Each field is KUBE3FS_ and the field's name in capitals."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    namespace: str = "kube3fs-system"
    """Where the Lease is."""
    identity: str = Field(default_factory=socket.gethostname)
    """Name of this replica: the pod's name."""
    address: str = "0.0.0.0"  # noqa: S104 - the kubelet and Prometheus come from outside the pod
    port: int = Field(default=8080, ge=0, le=65535)
    """Of /healthz and /metrics."""
    class_names: dict[str, str] = Field(default_factory=dict)
    """Names of StorageClasses that do not begin with their namespace, as JSON: for each the namespace."""
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    exit_at: str = ""
    """For tests only, see faults.py."""


def from_environment(environment: Mapping[str, str] = os.environ) -> Settings:
    """Raises pydantic.ValidationError, which names the variable's field."""
    known = {f"{PREFIX}{name.upper()}": name for name in Settings.model_fields}
    values: dict[str, object] = {known[k]: v for k, v in environment.items() if k in known}
    if "class_names" in values:
        values["class_names"] = pydantic_core.from_json(str(values["class_names"]))
    return Settings.model_validate(values)
