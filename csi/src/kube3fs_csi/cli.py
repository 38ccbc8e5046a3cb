"""The command line: `kube3fs-csi node` and `kube3fs-csi controller`."""

import argparse
import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import kube3fs_csi
from kube3fs_csi import logs
from kube3fs_csi.settings import ControllerSettings, NodeSettings

DATA_DIR = Path("/var/lib/kube3fs")

_EPILOG = """examples:
  kube3fs-csi node --node-name $(hostname) --usrbiod /run/kube3fs/usrbiod.sock
  kube3fs-csi node --no-kubernetes --cluster storage/fast=/srv/data --data-dir /srv   without an API server
  kube3fs-csi controller --endpoint /csi/csi.sock
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until SIGTERM or SIGINT."""
    arguments = vars(_parser().parse_args(argv))
    logs.configure(arguments.pop("log_format"), verbose=arguments.pop("verbose"))
    command = arguments.pop("command")
    try:
        work = _controller(arguments) if command == "controller" else _node(arguments)
    except ValidationError as error:
        for problem in error.errors():
            option = str(problem["loc"][0]).replace("_", "-")
            print(f"kube3fs-csi: --{option}: {problem['msg']}", file=sys.stderr)  # noqa: T201
        return 2
    asyncio.run(_until_signalled(work))
    return 0


def _controller(arguments: dict[str, Any]) -> Coroutine[Any, Any, None]:
    from kube3fs_csi.controller.process import run

    return run(ControllerSettings.model_validate(arguments))


def _node(arguments: dict[str, Any]) -> Coroutine[Any, Any, None]:
    from kube3fs_csi.plugin.process import run

    arguments["data_dirs"] = arguments["data_dirs"] or [DATA_DIR]
    # containerd gives 1024; a session has three fds, and one for each ring, Iov and open file without a name.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError):  # it is more than fs.nr_open allows now
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return run(NodeSettings.model_validate(arguments))


async def _until_signalled(work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kube3fs-csi",
        description="The CSI driver of kube3fs: one process on each node, and one for the cluster.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=kube3fs_csi.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_node(commands.add_parser("node", help="mounts volumes on this node, and keeps the node's data"))
    _add_controller(commands.add_parser("controller", help="makes volumes for the cluster"))
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    add = parser.add_argument
    add("--kubeconfig", default="", metavar="FILE", help="how to reach the API server; empty: as a pod does")
    add("--health-port", type=int, default=9808, metavar="PORT", help="/healthz, /readyz and /metrics")
    add("--log-format", choices=["text", "json"], default="text", help="how log lines on stderr look")
    add("--verbose", action="store_true", help="log more")


def _add_controller(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    parser.add_argument(
        "--endpoint", type=Path, default=Path("/csi/csi.sock"), metavar="SOCKET", help="where sidecars call"
    )


def _add_node(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add = parser.add_argument
    add("--node-name", default=os.environ.get("NODE_NAME", ""), metavar="NAME", help="the Kubernetes node")
    add(
        "--namespace",
        default=os.environ.get("POD_NAMESPACE", "default"),
        metavar="NAME",
        help="where the node's Lease is",
    )
    add("--kubelet-dir", type=Path, default=Path("/var/lib/kubelet"), metavar="DIR", help="kubelet's folder")
    add(
        "--usrbiod",
        type=Path,
        default=Path("/run/kube3fs/usrbiod.sock"),
        metavar="SOCKET",
        help="control socket",
    )
    add(
        "--data-dir",
        dest="data_dirs",
        type=Path,
        action="append",
        metavar="DIR",
        help="data roots lie below it",
    )
    add("--client-source", type=Path, metavar="DIR", help="the client library that pods may mount")
    add("--max-shm-bytes", type=int, default=_half_of_memory(), metavar="N", help="shared memory for one pod")
    add("--max-volumes", type=int, default=512, metavar="N", help="volumes on this node; 0: no limit")
    add("--no-rdma", dest="rdma", action="store_false", help="offer no kube3fs.io/rdma devices")
    add("--rdma-devices", default="", metavar="REGEX", help="offer only devices of these names")
    add("--rdma-shares", type=int, default=1, metavar="N", help="pods that may share a device")
    add("--cdi-dir", type=Path, default=Path("/var/run/cdi"), metavar="DIR", help="where CDI specs go")
    add("--sysfs", type=Path, default=Path("/sys"), metavar="DIR", help="where to look for devices")
    add("--no-kubernetes", dest="kubernetes", action="store_false", help="work without an API server")
    add("--cluster", dest="clusters", type=_cluster, action="append", default=[], metavar="NS/NAME=DIR",
        help="serve this data root, without an API server")  # fmt: skip


def _cluster(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or name.count("/") != 1 or not path.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAMESPACE/NAME=/DIRECTORY")
    return name, Path(path)


def _half_of_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
