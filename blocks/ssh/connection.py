"""The one connection of a process to a host: opened at its first use, watched, and opened again after a loss."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from slurm_ray_flow.blocks.ssh import authentication, known_hosts
from slurm_ray_flow.blocks.ssh.authentication import Secrets, log_in
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint
from slurm_ray_flow.blocks.ssh.known_hosts import KeyVerdict
from slurm_ray_flow.blocks.ssh.open_connection import OpenConnection, OpenConnectionError, Refused
from slurm_ray_flow.blocks.ssh.transport import Proxied, connected_socket
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed, SlurmRayFlowError
from slurm_ray_flow.core.interruption import pause
from slurm_ray_flow.core.launch_events import Note, publish
from slurm_ray_flow.core.trace import traced

_PATIENCE = 30.0


class Sessions:
    """The channels of one connection.

    Args:
        channel: opens one, or raises Refused.
    """

    def __init__(self, channel: Callable[[], Any]) -> None:
        self._channel = channel
        self._changed = threading.Condition()
        self._narrow = False
        self._transfers = 0
        self.aside: list[Callable[[], None]] = []
        """Functions that close the channels of agents."""

    @contextlib.contextmanager
    def transfer(self) -> Iterator[Any]:
        """A channel for files."""
        channel = self._granted()
        try:
            with contextlib.closing(channel):
                yield channel
        finally:
            self._leave()

    def talk(self) -> Any:
        """A channel for an agent; where the server allows one channel, it waits for files."""
        end = time.monotonic() + _PATIENCE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not (self._narrow and self._transfers))
            try:
                return self._channel()
            except Refused:
                self._narrow = True
                if time.monotonic() > end and not self._transfers:
                    raise
                time.sleep(0.05)

    def _granted(self) -> Any:
        end = time.monotonic() + _PATIENCE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not (self._narrow and self._transfers))
                self._transfers += 1
            try:
                return self._channel()
            except BaseException as error:
                self._leave()
                if not isinstance(error, Refused) or time.monotonic() > end:
                    raise
            self._narrow = True
            for step in self.aside:
                step()
            time.sleep(0.05)

    def _leave(self) -> None:
        with self._changed:
            self._transfers -= 1
            self._changed.notify_all()


@dataclass
class ConnectionTimeouts:
    """The timeouts of a connection, in seconds.

    Attributes:
        connect: one try to connect, without the log-in.
        first: how long a first connection that is refused is tried again.
        again: how long a lost one is.
        quiet: silence after which the server is asked for a sign of life.
        patience: how long it may take with that.
        begin: how long our program there may take to start, after all that a login shell does.
    """

    connect: float = 15.0
    first: float = 20.0
    again: float = 3600.0
    quiet: float = 8.0
    patience: float = 15.0
    begin: float = 60.0


class ConnectionLost(Exception):
    """The connection is gone; what was asked for can be asked again.

    Attributes:
        advice: what to try, where it can't be made for a reason that does not pass; "" where it may pass.
    """

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


class Connection:
    """A connection, shared by all threads of this process.

    Attributes:
        made: how often it was made.
        round_trips: requests that were answered over it.
        agents: our programs there, by their root and Python.
    """

    def __init__(
        self, endpoint: Endpoint, secrets: Callable[[Endpoint], Secrets], limits: ConnectionTimeouts, label: str
    ) -> None:
        self.endpoint, self.limits, self.label = endpoint, limits, label
        self.made = self.round_trips = 0
        self._secrets = secrets
        self.agents: dict[tuple[str, str], Any] = {}
        self._held: dict[Endpoint, Secrets] = {}
        self._wires: list[OpenConnection] = []
        self._lock = threading.RLock()
        self._denied: SlurmRayFlowError | None = None
        self.sessions = Sessions(self._channel)

    def __repr__(self) -> str:
        return f"Connection({self.endpoint})"

    @property
    def password(self) -> str:
        """The password that the server accepted; "" for another method."""
        held = self._held.get(self.endpoint)
        return held.password if held else ""

    @property
    def alive(self) -> bool:
        return bool(self._wires) and all(wire.alive for wire in self._wires)

    def wire(self) -> OpenConnection:
        """The open connection, opened where there is none.

        Raises:
            SlurmRayFlowError: it must not be made: an unknown key, a log-in that failed.
            Lost: it can't be made now.
        """
        with self._lock:
            if not self.alive:
                self._connect()
            return self._wires[-1]

    def talk(self) -> Any:
        """A channel for an agent. Raises the errors of `wire`."""
        with _lost():
            return self.sessions.talk()

    @contextlib.contextmanager
    def transfer(self) -> Iterator[Any]:
        """A channel for files. Raises the errors of `wire`."""
        with _lost(), self.sessions.transfer() as channel:
            yield channel

    def reach(self, host: str, port: int) -> Any:
        """A channel to a port as the server reaches it. Raises the errors of `wire`."""
        with _lost():
            return self.wire().tunnel(host, port, self.limits.connect)

    def _channel(self) -> Any:
        return self.wire().channel()

    def close(self, patience: float = -1) -> None:
        """Close the connection; the next use opens it again.

        Args:
            patience: seconds to wait for whoever connects just now; without an end where it is negative.
        """
        if self._lock.acquire(timeout=patience):
            try:
                self._denied = None
                self._drop()
            finally:
                self._lock.release()

    def forget(self) -> None:
        """Leave the connection to the parent of this process, which has been forked; the next use opens another one."""
        self._wires, self._lock, self.sessions = [], threading.RLock(), Sessions(self._channel)
        for agent in self.agents.values():
            agent.forget()

    def _drop(self) -> None:
        for wire in reversed(self._wires):
            wire.close()
        self._wires = []

    def _connect(self) -> None:
        if self._denied is not None:
            raise self._denied
        self._drop()
        try:
            with traced(self.label, lambda: f"connects to {self.endpoint}"):
                for server in (*self.endpoint.through, self.endpoint):
                    self._wires.append(self._entered(server))
        except BaseException as error:
            self._drop()
            if isinstance(error, SlurmRayFlowError) and not error.transient and not authentication.unasked():
                self._denied = error
            if isinstance(error, OpenConnectionError):
                raise ConnectionLost(str(error), error.advice) from None
            raise
        self.made += 1
        threading.Thread(target=_watch, args=(self._wires[-1], self.limits), daemon=True, name="srf-ssh").start()

    def _entered(self, server: Endpoint) -> OpenConnection:
        wire = self._shaken_hands(server)
        try:
            secrets = self._held.setdefault(server, self._secrets(server))
            log_in(wire, server, secrets, again=bool(self.made))
        except BaseException:
            wire.close()
            raise
        return wire

    def _shaken_hands(self, server: Endpoint) -> OpenConnection:
        lines = known_hosts.known_lines(server)
        wire = open_wire(server, self._wires, lines, self.limits)
        try:
            check_host_key(wire, server, lines, self.label)
        except BaseException:
            wire.close()
            raise
        return wire


def open_wire(
    server: Endpoint, before: list[OpenConnection], lines: list[known_hosts.KnownHostLine], limits: ConnectionTimeouts
) -> OpenConnection:
    """Connect to a server, through those before it; its host key is not judged yet.

    Raises:
        WireError: it can't be reached.
    """
    try:
        if before:
            inner = before[-1].tunnel(server.host, server.port, limits.connect)
        elif server.proxy_command:
            inner = Proxied(server.proxy_command)
        else:
            inner = connected_socket(server.host, server.port, limits.connect)
    except OSError as error:
        unknown = isinstance(error, socket.gaierror) and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        if unknown:
            advice = (
                "see that the name is right (`srf clusters` shows it), and that the VPN is up where only that knows it"
            )
            raise OpenConnectionError(f"no host is known here as {server.host!r}", advice) from None
        raise OpenConnectionError(f"{server} can't be reached: {error.strerror or error}") from None
    except Refused as error:
        raise OpenConnectionError(f"{server} can't be reached from the server before it: {error}") from None
    try:
        key_types = known_hosts.algorithms(lines, server.known_as)
        return OpenConnection(inner, key_types=key_types, timeout=limits.connect, allowed=dict(server.algorithms))
    except BaseException as error:
        missing = isinstance(inner, Proxied) and inner.not_found()
        with contextlib.suppress(Exception):
            inner.close()
        if isinstance(error, OpenConnectionError) and isinstance(inner, Proxied):
            advice = "see ProxyCommand in ~/.ssh/config: its program is not here" if missing else ""
            raise OpenConnectionError(f"its ProxyCommand leads nowhere: {inner.words() or error}", advice) from None
        raise


def check_host_key(wire: OpenConnection, server: Endpoint, lines: list[known_hosts.KnownHostLine], label: str) -> None:
    """Refuse a server whose key is not known.

    Raises:
        HostKeyFailed: it is not, or is another one.
    """
    kind, key = wire.host_key
    verdict = known_hosts.judged(server, lines, kind, key)
    if verdict is KeyVerdict.KNOWN:
        wire.socket.limit = None
        return
    shown = f"{server} shows the {kind} key {known_hosts.fingerprint(key)}"
    if verdict is KeyVerdict.UNKNOWN:
        authority = any(line.marker == "@cert-authority" for line in known_hosts.lines_of(lines, server.known_as))
        where = shown + ("; certificates of host keys are not read" if authority else "")
        raise HostKeyFailed(
            f"the host key of {server.name} is not known", where=where, advice=f"run `srf trust {label}`"
        )
    if verdict is KeyVerdict.REVOKED:
        raise HostKeyFailed(
            f"the host key of {server.name} is revoked", where=shown, advice="ask the people who run the server"
        )
    held = next(line for line in known_hosts.lines_of(lines, server.known_as) if not line.marker)
    raise HostKeyFailed(
        f"the host key of {server.name} has changed: the server was set up anew, or somebody stands in between",
        where=f"{shown}; another one is known in {held.file}, line {held.number}",
        advice="ask the people who run the server for its fingerprint; if this one is right, run "
        f"`ssh-keygen -R '{server.known_as}' -f {held.file}` and `srf trust {label}`",
    )


def _watch(wire: OpenConnection, limits: ConnectionTimeouts) -> None:
    """Ask the server for signs of life, since a cut link gives no error."""
    wire.socket.patience = limits.patience
    while wire.alive:
        silence = time.monotonic() - wire.socket.heard
        if silence >= limits.quiet:
            wire.sign_of_life()
            silence = 0.0
        time.sleep(min(1.0, max(limits.quiet - silence, 0.05)))


# ---- all connections of this process

_all: dict[Any, Connection] = {}
_all_lock = threading.Lock()


def shared(
    endpoint: Endpoint, secrets: Callable[[Endpoint], Secrets], limits: ConnectionTimeouts, label: str, password: int
) -> Connection:
    """The connection of this process to this endpoint, under this label and with this password (its hash)."""
    with _all_lock:
        return _all.setdefault((endpoint, label, password), Connection(endpoint, secrets, limits, label))


def connections() -> list[Connection]:
    """All connections of this process, also closed ones."""
    return list(_all.values())


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except Refused as error:
        raise ConnectionLost(f"the server opens no further channel: {error}") from None
    except OpenConnectionError as error:
        raise ConnectionLost(str(error)) from None


@atexit.register
def close_all() -> None:
    """End all connections of this process."""
    for connection in connections():
        connection.close(patience=1.0)


def _forget_all() -> None:
    global _all_lock  # noqa: PLW0603 - the parent may have held it
    _all_lock = threading.Lock()
    for connection in connections():
        connection.forget()


os.register_at_fork(after_in_child=_forget_all)


def unreachable(name: str, why: str, seconds: float) -> ConnectionFailed:
    """The error for a host that can't be reached for too long."""
    return ConnectionFailed(
        f"{name} can't be reached: {why}",
        where=f"tried for {seconds:.0f} s",
        advice="see that the network (or the VPN) is up. Runs that have started go on: `srf attach` finds them later",
    )


class Outage:
    """An outage of a host: waits between attempts, informs the user, and gives up in the end."""

    def __init__(self, connection: Connection, label: str) -> None:
        self._connection, self._label = connection, label
        self._asked = time.monotonic()
        self._began: float | None = None
        self._pause = 0.1

    def wait(self, lost: ConnectionLost) -> None:
        """Wait before the next try; a host that was never reached is not waited for where that is of no use.

        Raises:
            ConnectionFailed: it has lasted too long, or is of no use.
        """
        why = str(lost)
        if lost.advice and not self._connection.made:
            raise ConnectionFailed(f"{self._label} can't be reached: {why}", advice=lost.advice)
        now = time.monotonic()
        if self._began is None:  # before the first connection there was nothing but this outage
            self._began = now if self._connection.made else self._asked
        limits = self._connection.limits
        bound = limits.again if self._connection.made else limits.first
        away = now - self._began
        if away >= bound:
            raise unreachable(self._label, why, away)
        publish(Note(f"{self._label} can't be reached ({why}); trying again, {away:.0f} s so far"))
        pause(min(self._pause, bound - away))
        self._pause = min(self._pause * 2, 15.0)

    def over(self) -> None:
        """Show that the host is reachable again, if it was not."""
        if self._began is not None:
            publish(Note(f"{self._label} is there again after {time.monotonic() - self._began:.0f} s"))
            self._began = None
