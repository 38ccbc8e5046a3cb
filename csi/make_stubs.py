"""Makes the gRPC stubs in src/kube3fs_csi/api from the .proto files of their pinned Go modules.

Run by `make venv` and `make stubs`. The modules come through `go mod download`, so the machine's GOPROXY and
GOSUMDB apply; a module whose sum is not the one pinned here is refused. Nothing of them is kept in the tree.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from grpc_tools import protoc

PACKAGE = Path("kube3fs_csi/api")
"""Where the stubs go below src/: protoc sees the same path, so that they import each other by full names."""


class Api(NamedTuple):
    """One .proto file of one Go module."""

    name: str
    module: str
    sum: str
    path: str


APIS = [
    Api(
        "csi",
        "github.com/container-storage-interface/spec@v1.13.0",
        "h1:6ja3nYoACisewTPAAZkJ1pbf4+1ehhvt9Z/nYgWGHGw=",
        "csi.proto",
    ),
    Api(
        "pluginregistration",
        "k8s.io/kubelet@v0.37.2",
        "h1:AaRApKAcqmMD4pxmsxdghJHbTNfOxYOIlPCARw8+01A=",
        "pkg/apis/pluginregistration/v1/api.proto",
    ),
    Api(
        "deviceplugin",
        "k8s.io/kubelet@v0.37.2",
        "h1:AaRApKAcqmMD4pxmsxdghJHbTNfOxYOIlPCARw8+01A=",
        "pkg/apis/deviceplugin/v1beta1/api.proto",
    ),
]


def download(api: Api) -> Path:
    """Returns the .proto file of `api` in Go's module cache."""
    answer = subprocess.run(
        ["go", "mod", "download", "-json", api.module], cwd="/", capture_output=True, text=True, check=False
    )
    if answer.returncode:
        sys.exit(f"go mod download {api.module} failed: {answer.stdout}{answer.stderr}")
    module = json.loads(answer.stdout)
    if module["Sum"] != api.sum:
        sys.exit(f"{api.module} has the sum {module['Sum']}, pinned is {api.sum}: not used")
    return Path(module["Dir"], api.path)


def main() -> None:
    """Writes name_pb2.py, name_pb2.pyi and name_pb2_grpc.py for every API."""
    src = Path(__file__).parent / "src"
    import_google = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as scratch:
        protos = Path(scratch, PACKAGE)
        protos.mkdir(parents=True)
        for api in APIS:
            shutil.copyfile(download(api), protos / f"{api.name}.proto")
        out = [f"--{kind}_out={src}" for kind in ("python", "pyi", "grpc_python")]
        files = [str(PACKAGE / f"{api.name}.proto") for api in APIS]
        if protoc.main(["protoc", f"-I{scratch}", f"-I{import_google}", *out, *files]):
            sys.exit("protoc failed")


if __name__ == "__main__":
    main()
