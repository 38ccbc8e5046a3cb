"""The command line: `python3 -m tests.cluster --help`."""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from tests.cluster import build, components, host, images, lifecycle, preflight, store
from tests.cluster.shell import ClusterError, say
from tests.cluster.spec import MAX_NODES, Spec

EXIT_CLUSTER = 125
"""When the cluster failed, and not the command in it; `timeout` and `docker run` have the same."""


def main(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _end)
    try:
        code: int = arguments.command(arguments)
    except ClusterError as error:
        say(f"error: {error}")
        return EXIT_CLUSTER
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    return code


def _end(signum: int, frame: FrameType | None) -> None:
    """SIGTERM ends this program in the ordinary way, so that it cleans up."""
    raise SystemExit(128 + signum)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.cluster",
        description="A real Kubernetes in namespaces of its own, from package registries alone. Needs root.",
        epilog="A command's exit code is passed on; 124: it took too long; 125: the cluster failed.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        return sub

    command(
        "build", _build, "compile the cluster's programs and the test tools, where this has not been done"
    )
    command("images", _images, "build the images of this tree, where this has not been done")
    sub = command("run", _run, "bring a cluster up, run a command in it, take everything down")
    _add_cluster_options(sub)
    sub.add_argument(
        "--timeout", type=_seconds, metavar="S", help="kill the command after S seconds (exit code 124)"
    )
    sub.add_argument("--keep", action="store_true", help="leave the cluster up; `down --name NAME` ends it")
    sub.add_argument(
        "argv", nargs="+", metavar="CMD", help="after `--`: the command, run with KUBECONFIG set"
    )
    sub = command("up", _up, "bring a cluster up and leave it")
    _add_name(sub)
    _add_cluster_options(sub)
    sub = command("shell", _shell, "a shell, or a command, in the namespaces of a cluster that is up")
    _add_name(sub)
    sub.add_argument("argv", nargs="*", metavar="CMD", help="after `--`: a command in place of the shell")
    sub = command(
        "logs", _logs, "print the log of a component of a cluster that is up; without one, list them"
    )
    _add_name(sub)
    sub.add_argument("component", nargs="?", help="as listed, for instance kubelet")
    sub = command("down", _down, "end a cluster that is up")
    _add_name(sub)
    return parser


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", type=_name, default="default", help="which cluster (default: %(default)s)")


def _add_cluster_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--nodes", type=_nodes, default=1, metavar="N", help=f"how many kubelets, 1 to {MAX_NODES}"
    )
    parser.add_argument(
        "--feature-gates", type=_gates, default="", metavar="A=true,B=false", help="for every component"
    )
    parser.add_argument(
        "--image",
        type=_image,
        action="append",
        default=[],
        help="an image archive (OCI or docker) to load as well",
    )
    parser.add_argument(
        "--port", type=_port, default=0, help="of the API server on 127.0.0.1 (default: a free one)"
    )


def _build(arguments: argparse.Namespace) -> int:
    print(build.ensure())
    return 0


def _images(arguments: argparse.Namespace) -> int:
    for image in images.ensure():
        print(f"{image.name}  {image.archive.stat().st_size >> 20} MB")
    return 0


def _run(arguments: argparse.Namespace) -> int:
    spec = _spec(arguments, f"run-{os.getpid()}")
    lifecycle.start(spec, arguments.port, stays=arguments.keep)
    try:
        return lifecycle.enter(spec, arguments.argv, arguments.timeout)
    finally:
        if arguments.keep:
            _tell(spec)
        else:
            host.destroy(spec.name)


def _up(arguments: argparse.Namespace) -> int:
    spec = _spec(arguments, arguments.name)
    lifecycle.start(spec, arguments.port, stays=True)
    _tell(spec)
    return 0


def _shell(arguments: argparse.Namespace) -> int:
    shell = [os.environ.get("SHELL", "/bin/sh")]
    return lifecycle.enter(_existing(arguments.name), arguments.argv or shell)


def _logs(arguments: argparse.Namespace) -> int:
    logs = sorted((host.folder(_existing(arguments.name).name) / "logs").glob("*.log"))
    if not arguments.component:
        print("\n".join(path.stem for path in logs))
        return 0
    chosen = [path for path in logs if path.stem == arguments.component]
    if not chosen:
        raise ClusterError(
            f"no log '{arguments.component}': there are {', '.join(path.stem for path in logs)}"
        )
    sys.stdout.write(chosen[0].read_text(errors="replace"))
    return 0


def _down(arguments: argparse.Namespace) -> int:
    spec = _existing(arguments.name)
    host.destroy(spec.name)
    say(f"the cluster '{spec.name}' is gone")
    return 0


def _spec(arguments: argparse.Namespace, name: str) -> Spec:
    """The cluster that the options ask for, its programs and images built."""
    preflight.check()
    programs = build.ensure()
    ours = [image.archive for image in images.ensure()]
    archives = [*map(Path, arguments.image), *sorted((programs / "images").glob("*.tar")), *ours]
    return Spec(
        name=name,
        state=str(host.folder(name)),
        programs=str(programs),
        nodes=arguments.nodes,
        feature_gates=arguments.feature_gates,
        store=str(store.ensure(programs, archives)),
    )


def _existing(name: str) -> Spec:
    host.sweep()
    try:
        return Spec.from_json(json.loads((host.folder(name) / "spec.json").read_text()))
    except FileNotFoundError:
        there = ", ".join(host.names()) or "none is"
        raise ClusterError(f"no cluster '{name}' is up ({there}): `up --name {name}` makes it") from None


def _tell(spec: Spec) -> None:
    """How to use the cluster, on stdout: `eval` takes it."""
    option = "" if spec.name == "default" else f" --name {spec.name}"
    print(f"export KUBECONFIG={spec.folder}/kubeconfig PATH={spec.bin}:$PATH")
    say(f"`python3 -m tests.cluster shell{option}` goes in, `down{option}` ends it")


def _name(text: str) -> str:
    if not text.replace("-", "").isalnum() or not text.isascii() or len(text) > 30:
        raise argparse.ArgumentTypeError(f"'{text}' is no name: up to 30 letters, digits and dashes")
    return text


def _nodes(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_NODES:
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 to {MAX_NODES}")
    return int(text)


def _seconds(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"'{text}' is no port number")
    return int(text)


def _image(text: str) -> str:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file '{text}': `make images` makes our images")
    return str(Path(text).resolve())


def _gates(text: str) -> str:
    try:
        components.feature_gates(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text
