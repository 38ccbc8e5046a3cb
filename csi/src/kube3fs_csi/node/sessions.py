"""Keeps usrbiod's sessions alive: holds every fd that a successor needs, and hands them over.

`Sessions.run` is one loop: connect, become the keeper, make the daemon's sessions those that are wanted, read
events until the daemon hangs up, start again. It needs no memory but the fds: what is wanted comes from the
records on disk, what is served from the daemon.
"""

import asyncio
import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from kube3fs_csi.node.usrbiod import GIVE_AT_ONCE, Connection, DaemonError, DaemonGone, Json, Message

log = logging.getLogger(__name__)

PROTOCOL = 1
_ATTACH_FDS = ("fuse", "backing", "shm")
_RETRY_SECONDS = 0.2
_AGAIN_SECONDS = 5.0
_BUSY_SECONDS = 0.005
_DETACH_SECONDS = 10.0
_DRAIN_AGAIN_SECONDS = 15.0
"""After a daemon could not be drained: each attempt stops all sessions for some seconds."""


class Health(Enum):
    """How a session fares."""

    SERVED = "served"
    WAITING = "usrbiod is away; reads and writes wait for its successor"
    DEAD = "usrbiod and the node plugin died together: every access fails with ENOTCONN; replace the pod"


class DaemonState(NamedTuple):
    """What is known of the daemon. `hello` is its last answer, which outlives it."""

    healthy: bool
    message: str
    hello: Json | None
    unserved: Mapping[str, str] = MappingProxyType({})
    """Why sessions that should be are not served, by name."""
    hung: tuple[str, ...] = ()
    """Sessions of which requests wait for storage that does not answer."""


class Sessions:
    """The sessions of one daemon. For one event loop."""

    def __init__(
        self,
        socket: Path,
        wanted: Callable[[], Mapping[str, Json]],
        superseded: Callable[[], bool] = lambda: False,
    ) -> None:
        """`wanted` answers the config (CONTROL.md, `attach`) of each session that should be, by name.

        `superseded`: whether a newer node plugin has taken over. From then on the sessions are its business.
        """
        self._socket = socket
        self._wanted = wanted
        self._superseded = superseded
        self._fds: dict[str, dict[str, int]] = {}
        self._served: set[str] = set()
        self._ops: frozenset[str] = frozenset()
        self._forgotten: set[tuple[str, str]] | None = None
        self._unsure: set[Path] = set()
        self._drain_at = 0.0
        self._undrained = ""
        """Why there is no attempt to drain before `_drain_at`."""
        self._up = asyncio.Event()
        self._settled = asyncio.Event()
        self._unserved: dict[str, str] = {}
        self._daemon = DaemonState(False, "not connected yet", None)

    @property
    def daemon(self) -> DaemonState:
        """What is known of the daemon now."""
        return self._daemon._replace(unserved=dict(self._unserved))

    def health(self, name: str) -> Health:
        """How the session `name` fares."""
        if name in self._served and self._up.is_set():
            return Health.SERVED
        held = "fuse" in self._fds.get(name, {})
        return Health.WAITING if held or not self._settled.is_set() else Health.DEAD

    def why(self, name: str) -> str:
        """What `health` means for the session `name`, and the daemon's own reason if it gave one."""
        health, reason = self.health(name).value, self._unserved.get(name)
        return f"{health} ({reason})" if reason else health

    def is_lost(self, name: str) -> bool:
        """Whether nobody will ever serve the session again, as far as is known now."""
        return self.health(name) is Health.DEAD

    async def wait_up(self, seconds: float) -> None:
        """Returns when the daemon answers and serves what is wanted; DaemonGone if it does not in time."""
        try:
            async with asyncio.timeout(seconds):
                await self._up.wait()
        except TimeoutError as error:
            raise DaemonGone(self._socket, self.daemon.message) from error

    async def run(self) -> None:
        """Returns when superseded. Fds stay open: whoever cancels it ends the process."""
        while not self._superseded():
            try:
                async with await Connection.open(self._socket) as keeper:
                    await self._serve(keeper)
            except (DaemonGone, DaemonError, OSError) as error:  # OSError: out of fds
                if str(error) != self.daemon.message:
                    log.warning("%s", error)
                self._daemon = DaemonState(False, str(error), self.daemon.hello)
            finally:
                self._up.clear()
            await asyncio.sleep(_RETRY_SECONDS)
        self._daemon = DaemonState(False, "a newer node plugin has taken over", self.daemon.hello)

    async def attach(self, config: Json, fds: Mapping[str, int]) -> None:
        """Has the daemon serve a new mount. Takes the fds, whatever becomes of it."""
        name = str(config["name"])
        self._drop(name)
        for key, fd in fds.items():  # first: a daemon that dies before it answers gets them back
            self._keep(name, key, fd)
        try:
            async with await Connection.open(self._socket) as control:
                config = self._understood(config)
                try:
                    await _attach(control, config, fds, resume=False)
                except DaemonError as error:
                    if error.kind != "session-exists":
                        raise
                    await _detach(control, name)  # of a mount that was given up before the answer came
                    await _attach(control, config, fds, resume=False)
        except BaseException:
            self._drop(name)
            raise
        self._served.add(name)

    async def detach(self, name: str) -> None:
        """Ends a session whose mount is gone. A daemon that is away does not get it back."""
        try:
            async with await Connection.open(self._socket) as control:
                await _detach(control, name)
        except DaemonGone as error:
            log.info("session %s goes without the daemon: %s", name, error)
        self._drop(name)

    async def set_space(self, spaces: Mapping[str, Json]) -> None:
        """Tells the daemon the sizes of volumes, by session. One that is away hears it when it comes back."""
        served = {name: space for name, space in spaces.items() if name in self._served}
        if not served or "space" not in self._ops:
            return
        try:
            async with await Connection.open(self._socket) as control:
                for name, space in served.items():
                    with contextlib.suppress(DaemonError):  # it ended meanwhile
                        await control.request("space", session=name, **space)
        except DaemonGone as error:
            log.info("the size of volumes is not told: %s", error)

    async def _serve(self, keeper: Connection) -> None:
        await keeper.request("keep")
        events = asyncio.create_task(self._read_events(keeper))
        try:
            synchronise = asyncio.create_task(self._synchronise())
            try:
                await asyncio.wait({events, synchronise}, return_when=asyncio.FIRST_COMPLETED)
                if not events.done():
                    await synchronise
                    self._settled.set()
                    self._up.set()
                    await self._try_again(events)
            finally:
                synchronise.cancel()
                with contextlib.suppress(asyncio.CancelledError, DaemonGone, DaemonError):
                    await synchronise
            await events
        finally:
            events.cancel()
            with contextlib.suppress(asyncio.CancelledError, DaemonGone):
                await events

    async def _try_again(self, events: asyncio.Task[None]) -> None:
        """Has the daemon resume what it could not resume before, until the keeper's connection ends.

        And looks for sessions whose storage does not answer.
        """
        while not events.done():
            await asyncio.wait({events}, timeout=_AGAIN_SECONDS)
            if not events.done():
                await self._look_for_hung()
            unserved = [name for name in self._unserved if "fuse" in self._fds.get(name, {})]
            wanted = self._wanted() if unserved else {}
            again = [name for name in unserved if name in wanted]
            if again and not events.done():
                async with await Connection.open(self._socket) as control:
                    for name in again:
                        if name in self._unserved:  # it may have been given up meanwhile
                            await self._resume(control, wanted[name])

    async def _look_for_hung(self) -> None:
        with contextlib.suppress(DaemonGone, DaemonError):  # who reads the events says so
            async with await Connection.open(self._socket) as control:
                listed = await control.request_all("list")
            sessions = [session for message in listed for session in message.body["sessions"]]
            hung = sorted(session["session"] for session in sessions if session.get("hung"))
            self._daemon = self._daemon._replace(hung=tuple(hung))

    async def _read_events(self, keeper: Connection) -> None:
        while True:
            message = await keeper.receive()
            event, name = message.body["event"], message.body.get("session", "")
            if event == "keep":
                self._keep(name, message.body["key"], message.fds[0])
            elif event == "forget":
                self._forget(name, message.body["key"])
            elif event == "detached":
                if name in self._served:  # and not the one in whose place `attach` is putting another
                    self._drop(name)
            else:
                message.close()

    async def _synchronise(self) -> None:
        """Makes the daemon's sessions those that are wanted."""
        async with await Connection.open(self._socket) as control:
            hello = await control.request("hello")
            if hello["protocol"] != PROTOCOL:
                why = f"it speaks protocol {hello['protocol']}, this node plugin {PROTOCOL}: update both"
                raise DaemonGone(self._socket, why)
            if hello["draining"]:
                await self._end_drained(control)
            self._ops = frozenset(hello["ops"])
            # Only now: what a predecessor was made to give up, ours must be able to serve.
            for other in self._socket.parent.glob("*.sock"):
                if other != self._socket:
                    await self._take_from(other)
            listed = await _list(control)
            if listed:
                await self._fetch(control)
            wanted = self._wanted()
            self._served = listed & wanted.keys()
            for name in self._unserved.keys() - wanted.keys():
                del self._unserved[name]
            for name in listed - wanted.keys():
                log.info("session %s is not wanted any more", name)
                await _detach(control, name)
            for name in self._fds.keys() - wanted.keys():
                self._drop(name)
            for name, config in wanted.items():
                if name not in listed and "fuse" in self._fds.get(name, {}):
                    await self._resume(control, config)
            await self._prune(control, wanted.keys() - self._served)
        self._daemon = DaemonState(True, "", hello)
        log.info("usrbiod %s serves %d sessions", hello["version"], len(self._served))

    async def _prune(self, control: Connection, unserved: Iterable[str]) -> None:
        """Has the daemon remove the states of sessions that ended while it was away.

        It spares what it serves, and `unserved`: another plugin may be about to give it these.
        """
        if "prune" not in self._ops:
            return
        try:
            await control.request("prune", sessions=sorted(unserved))
        except (DaemonError, DaemonGone) as error:  # nobody waits for it; the next time will do
            log.warning("states of ended sessions stay: %s", error)

    async def _take_from(self, predecessor: Path) -> None:
        """Ends the work of a daemon that ours succeeds, and takes its fds (CONTROL.md, "Take-over")."""
        try:
            control = await Connection.open(predecessor)
        except DaemonGone as error:
            reason = getattr(error.__cause__, "errno", None)
            if reason in (errno.ECONNREFUSED, errno.ENOENT):
                predecessor.unlink(missing_ok=True)  # it died long ago: nobody listens there any more
            elif reason != errno.EPROTOTYPE:  # a socket of another type is no daemon's
                raise
            return
        async with control:
            if time.monotonic() < self._drain_at:
                raise DaemonGone(self._socket, self._undrained)
            log.info("taking over from the usrbiod at %s", predecessor)
            await self._drain(control, predecessor)
            await self._fetch(control)
            if predecessor in self._unsure:
                await control.kill_daemon()
                self._unsure.discard(predecessor)

    async def _drain(self, control: Connection, predecessor: Path) -> None:
        """Returns when nothing runs in that daemon any more. Otherwise it goes on as before."""
        try:
            await control.request("drain")
        except DaemonError as error:
            if error.kind != "busy":
                raise
            if "health" in (await control.request("hello"))["ops"]:
                self._drain_at = time.monotonic() + _DRAIN_AGAIN_SECONDS
            else:  # its second answer would be "drained", whatever still runs: that its end says only
                self._unsure.add(predecessor)
            self._undrained = f"its predecessor is not done: {error}"
            raise DaemonGone(self._socket, self._undrained) from error

    async def _end_drained(self, control: Connection) -> NoReturn:
        """Ends our daemon if its successor is gone: it never serves again, and the kubelet starts another."""
        if not self._superseded():
            await self._fetch(control)
        if self._superseded():  # also: meanwhile
            raise DaemonGone(self._socket, "it has drained for its successor")
        why = "it had drained for a successor that is gone"
        if not control.end_daemon():
            raise DaemonGone(self._socket, f"{why}, and its process cannot be seen from here: restart it")
        raise DaemonGone(self._socket, f"{why}, and was ended so that a new one starts")

    async def _fetch(self, control: Connection) -> None:
        """Gets the fds that this process has not: it was restarted, or missed events."""
        self._forgotten = set()
        try:
            for message in await control.request_all("fds"):
                name = message.body.get("session", "")
                for key, fd in zip(message.body.get("keys", ()), message.fds, strict=True):
                    if (name, key) in self._forgotten:
                        os.close(fd)
                    else:
                        self._keep(name, key, fd)
        finally:
            self._forgotten = None

    async def _resume(self, control: Connection, config: Json) -> None:
        """Gives a restarted daemon a session back."""
        name = str(config["name"])
        fds = self._fds[name]
        kept = [key for key in fds if key not in _ATTACH_FDS]
        try:
            for start in range(0, len(kept), GIVE_AT_ONCE):
                keys = [key for key in kept[start : start + GIVE_AT_ONCE] if key in fds]
                await control.request("give", [fds[key] for key in keys], session=name, keys=keys)
            if self._fds.get(name) is not fds:
                return  # it was detached meanwhile, and its fds are closed
            own = {key: fds[key] for key in _ATTACH_FDS if key in fds}
            await _attach(control, self._understood(config), own, resume=True)
        except DaemonError as error:
            # A system call that failed may succeed when there is room again, and another daemon may end.
            # Anything else stays as it is.
            lost = error.kind not in ("failed", "busy")
            if self._unserved.get(name) != str(error):
                log.error("session %s is %s: %s", name, "lost" if lost else "not served for now", error)
            if lost:
                self._drop(name)
            self._unserved[name] = str(error)
        else:
            self._unserved.pop(name, None)
            self._served.add(name)

    def _understood(self, config: Json) -> Json:
        """What this daemon knows of a config: an older one may refuse what came with a newer op."""
        return {key: value for key, value in config.items() if key != "space" or "space" in self._ops}

    def _keep(self, name: str, key: str, fd: int) -> None:
        fds = self._fds.setdefault(name, {})
        if key in fds:
            os.close(fds[key])
        fds[key] = fd

    def _forget(self, name: str, key: str) -> None:
        if self._forgotten is not None:
            self._forgotten.add((name, key))
        fd = self._fds.get(name, {}).pop(key, None)
        if fd is not None:
            os.close(fd)

    def _drop(self, name: str) -> None:
        self._served.discard(name)
        self._unserved.pop(name, None)
        close_all(self._fds.pop(name, {}).values())


def close_all(fds: Iterable[int]) -> None:
    """Closes fds that this process owns."""
    for fd in fds:
        os.close(fd)


async def _list(control: Connection) -> set[str]:
    messages: list[Message] = await control.request_all("list")
    return {session["session"] for message in messages for session in message.body["sessions"]}


async def _attach(control: Connection, config: Json, fds: Mapping[str, int], *, resume: bool) -> None:
    await control.request("attach", [*fds.values()], config=config, fds=list(fds), resume=resume)


async def _detach(control: Connection, name: str) -> None:
    """Returns when the daemon has no such session. It may be ending it by itself: its mount is gone."""
    deadline = time.monotonic() + _DETACH_SECONDS
    while True:
        try:
            await control.request("detach", session=name)
        except DaemonError as error:
            if error.kind == "session-unknown":
                return
            if error.kind != "busy" or time.monotonic() > deadline:
                raise
            await asyncio.sleep(_BUSY_SECONDS)
        else:
            return
