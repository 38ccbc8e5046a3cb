"""Starting a cluster, running commands in it, ending it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster import host
from tests.cluster.components import CONTAINERD_SOCKET, kubeconfig_path
from tests.cluster.paths import REPOSITORY
from tests.cluster.shell import UNSHARE, ClusterError, say
from tests.cluster.spec import FIRST, Spec

START_SECONDS = 300
"""For everything up to Ready. It takes 15 s on an idle machine with 2 cores."""

_JOIN = 'for file in $JOIN; do echo $$ > "$file"; done; unset JOIN; exec "$@"'
"""Enter the cgroups, then become the program: whoever sweeps finds every process of the cluster there."""


def start(spec: Spec, port: int, *, stays: bool) -> None:
    """Bring the cluster up; returns when pods can run. 127.0.0.1:`port` (0: any free one) leads to its API.

    One that `stays` outlives this process; another one is killed with it, however it ends.
    """
    begin = time.monotonic()
    listener = _listen(port)
    host.create(spec)
    try:
        _spawn(spec, listener, stays=stays)
        _write_kubeconfig(spec, listener.getsockname()[1])
    except BaseException:
        host.destroy(spec.name)
        raise
    listener.close()
    if stays:
        (spec.folder / "owner").unlink()
    say(f"{spec.nodes} node{'s' * (spec.nodes > 1)} Ready in {time.monotonic() - begin:.1f} s")


def enter(spec: Spec, argv: Sequence[str], timeout: float | None = None) -> int:
    """Run a command on the first node, with KUBECONFIG set. Returns its exit code; 124 after `timeout` s.

    The command shares this process's terminal and working folder.
    """
    init = host.process(spec.folder, "init")
    if init is None or not init.alive():
        raise ClusterError(f"the cluster '{spec.name}' is not up: run `up` first")
    nsenter = ["nsenter", f"--target={init.pid}", "--net", "--mount", "--uts", "--ipc"]
    nsenter += [f"--pid=/proc/{init.pid}/ns/pid_for_children", f"--wdns={Path.cwd()}", "--"]
    # A Ctrl-C at the terminal is the command's to handle: it ends, and then we clean up.
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen(
            [*nsenter, *argv],
            env=environment(spec),
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        say(f"the command took more than {timeout:.0f} s")
        process.kill()
        process.wait()
        return 124
    finally:
        signal.signal(signal.SIGINT, previous)


def environment(spec: Spec) -> Mapping[str, str]:
    """What a command in the cluster gets."""
    return {
        **os.environ,
        "KUBECONFIG": kubeconfig_path(spec, "admin"),
        "PATH": f"{spec.bin}:{os.environ['PATH']}",
        "NO_PROXY": "*",
        "no_proxy": "*",
        "CONTAINERD_ADDRESS": CONTAINERD_SOCKET,
        "CONTAINERD_NAMESPACE": "k8s.io",
        "KUBE3FS_CLUSTER": spec.state,
        "KUBE3FS_PROGRAMS": spec.programs,
    }


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise ClusterError(
            f"127.0.0.1:{port}: {os.strerror(error.errno or 0).lower()}; choose another --port"
        ) from None
    listener.listen()
    return listener


def _spawn(spec: Spec, listener: socket.socket, *, stays: bool) -> None:
    """Start the cluster's first process in new namespaces; returns when it says `ready`."""
    read, write = os.pipe()
    argv = ["sh", "-c", _JOIN, "sh"]
    if not stays:
        argv += ["setpriv", "--pdeathsig", "KILL"]
    argv += [*UNSHARE, sys.executable, "-m", "tests.cluster.inside", spec.state]
    argv += [str(listener.fileno()), str(write)]
    log = spec.folder / "logs" / "cluster.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            env={
                **os.environ,
                "JOIN": " ".join(
                    str(root / spec.cgroup / "control/cgroup.procs") for root in host.hierarchies()
                ),
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno(), write],
            start_new_session=True,
        )
    os.close(write)
    host.set_process(spec.folder, "init", process.pid)
    answer = _read_line(read, START_SECONDS)
    if answer != "ready":
        raise ClusterError(
            answer or f"the cluster did not start: {log.read_text(errors='replace').strip()[-400:]}"
        )


def _read_line(fd: int, seconds: float) -> str:
    """The first line that comes out of a pipe within `seconds`; empty when the other end is gone."""
    with os.fdopen(fd) as pipe:
        signal.signal(signal.SIGALRM, _too_late)
        signal.alarm(int(seconds))
        try:
            return pipe.readline().strip()
        finally:
            signal.alarm(0)


def _too_late(signum: int, frame: object) -> None:
    raise ClusterError(f"the cluster is not Ready after {START_SECONDS} s: is the machine busy?")


def _write_kubeconfig(spec: Spec, port: int) -> None:
    """The kubeconfig for programs outside the cluster's namespaces."""
    inner = Path(kubeconfig_path(spec, "admin")).read_text()
    outer = inner.replace(f"https://{FIRST.address}:6443", f"https://127.0.0.1:{port}")
    (spec.folder / "kubeconfig").write_text(outer)
