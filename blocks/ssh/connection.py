"""The one connection of a process to a host: opened at its first use, monitored, and opened again after a loss."""

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
        channel: opens a channel, or raises Refused.
    """

    def __init__(self, channel: Callable[[], Any]) -> None:
        self._channel = channel
        self._changed = threading.Condition()
        self._single_channel = False
        self._transfers = 0
        self.agent_closers: list[Callable[[], None]] = []
        """Functions that close the channels of agents."""

    @contextlib.contextmanager
    def transfer(self) -> Iterator[Any]:
        """A channel for files."""
        channel = self._transfer_channel()
        try:
            with contextlib.closing(channel):
                yield channel
        finally:
            self._end_transfer()

    def agent_channel(self) -> Any:
        """A channel for an agent; if the server allows only one channel, it waits for transfers."""
        end = time.monotonic() + _PATIENCE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not (self._single_channel and self._transfers))
            try:
                return self._channel()
            except Refused:
                self._single_channel = True
                if time.monotonic() > end and not self._transfers:
                    raise
                time.sleep(0.05)

    def _transfer_channel(self) -> Any:
        end = time.monotonic() + _PATIENCE
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not (self._single_channel and self._transfers))
                self._transfers += 1
            try:
                return self._channel()
            except BaseException as error:
                self._end_transfer()
                if not isinstance(error, Refused) or time.monotonic() > end:
                    raise
            self._single_channel = True
            for step in self.agent_closers:
                step()
            time.sleep(0.05)

    def _end_transfer(self) -> None:
        with self._changed:
            self._transfers -= 1
            self._changed.notify_all()


@dataclass
class ConnectionTimeouts:
    """The timeouts of a connection, in seconds.

    Attributes:
        connect: for one try to connect, without the log-in.
        first: for repeated tries before the first connection.
        again: for repeated tries after the loss of a connection.
        quiet: silence of the server after which a keep-alive is sent.
        patience: for the answer to a keep-alive.
        begin: for the start of the agent, with the start files of the login shell.
    """

    connect: float = 15.0
    first: float = 20.0
    again: float = 3600.0
    quiet: float = 8.0
    patience: float = 15.0
    begin: float = 60.0


class ConnectionLost(Exception):
    """The connection is lost; the request can be repeated.

    Attributes:
        advice: what the user can try if repetition is of no use; "" if it may be of use.
    """

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


class Connection:
    """A connection, shared by all threads of this process.

    Attributes:
        times_connected: the number of times it was opened.
        round_trips: the number of answered requests.
        agents: the agents on the host, by their root and Python.
    """

    def __init__(
        self, endpoint: Endpoint, secrets: Callable[[Endpoint], Secrets], timeouts: ConnectionTimeouts, label: str
    ) -> None:
        self.endpoint, self.timeouts, self.label = endpoint, timeouts, label
        self.times_connected = self.round_trips = 0
        self._secrets = secrets
        self.agents: dict[tuple[str, str], Any] = {}
        self._secrets_by_server: dict[Endpoint, Secrets] = {}
        self._chain: list[OpenConnection] = []
        self._lock = threading.RLock()
        self._refusal: SlurmRayFlowError | None = None
        self.sessions = Sessions(self._channel)

    def __repr__(self) -> str:
        return f"Connection({self.endpoint})"

    @property
    def password(self) -> str:
        """The password that the server accepted; "" for another method."""
        secrets = self._secrets_by_server.get(self.endpoint)
        return secrets.password if secrets else ""

    @property
    def alive(self) -> bool:
        return bool(self._chain) and all(opened.alive for opened in self._chain)

    def opened(self) -> OpenConnection:
        """The open connection, which is opened if needed.

        Raises:
            SlurmRayFlowError: it must not be opened: an unknown key, a failed log-in.
            ConnectionLost: it can't be opened now.
        """
        with self._lock:
            if not self.alive:
                self._connect()
            return self._chain[-1]

    def agent_channel(self) -> Any:
        """A channel for an agent. Raises the errors of `opened`."""
        with _as_connection_lost():
            return self.sessions.agent_channel()

    @contextlib.contextmanager
    def transfer(self) -> Iterator[Any]:
        """A channel for files. Raises the errors of `opened`."""
        with _as_connection_lost(), self.sessions.transfer() as channel:
            yield channel

    def reach(self, host: str, port: int) -> Any:
        """A channel to a port as the server reaches it. Raises the errors of `opened`."""
        with _as_connection_lost():
            return self.opened().tunnel(host, port, self.timeouts.connect)

    def _channel(self) -> Any:
        return self.opened().channel()

    def close(self, patience: float = -1) -> None:
        """Close the connection; the next use opens it again.

        Args:
            patience: seconds to wait for a thread that connects just now; negative for no bound.
        """
        if self._lock.acquire(timeout=patience):
            try:
                self._refusal = None
                self._drop()
            finally:
                self._lock.release()

    def forget(self) -> None:
        """Drop the connection after a fork, because it is the parent process's; the next use opens another one."""
        self._chain, self._lock, self.sessions = [], threading.RLock(), Sessions(self._channel)
        for agent in self.agents.values():
            agent.forget()

    def _drop(self) -> None:
        for opened in reversed(self._chain):
            opened.close()
        self._chain = []

    def _connect(self) -> None:
        if self._refusal is not None:
            raise self._refusal
        self._drop()
        try:
            with traced(self.label, lambda: f"connects to {self.endpoint}"):
                for server in (*self.endpoint.through, self.endpoint):
                    self._chain.append(self._logged_in(server))
        except BaseException as error:
            self._drop()
            if isinstance(error, SlurmRayFlowError) and not error.transient and not authentication.unasked():
                self._refusal = error
            if isinstance(error, OpenConnectionError):
                raise ConnectionLost(str(error), error.advice) from None
            raise
        self.times_connected += 1
        threading.Thread(target=_watch, args=(self._chain[-1], self.timeouts), daemon=True, name="srf-ssh").start()

    def _logged_in(self, server: Endpoint) -> OpenConnection:
        opened = self._with_known_key(server)
        try:
            secrets = self._secrets_by_server.setdefault(server, self._secrets(server))
            log_in(opened, server, secrets, reconnecting=bool(self.times_connected))
        except BaseException:
            opened.close()
            raise
        return opened

    def _with_known_key(self, server: Endpoint) -> OpenConnection:
        lines = known_hosts.known_lines(server)
        opened = connect_to(server, self._chain, lines, self.timeouts)
        try:
            check_host_key(opened, server, lines, self.label)
        except BaseException:
            opened.close()
            raise
        return opened


def connect_to(
    server: Endpoint, hops: list[OpenConnection], lines: list[known_hosts.KnownHostLine], timeouts: ConnectionTimeouts
) -> OpenConnection:
    """Connect to a server through the jump hosts before it, without a check of its host key.

    Raises:
        OpenConnectionError: the server can't be reached.
    """
    try:
        if hops:
            stream = hops[-1].tunnel(server.host, server.port, timeouts.connect)
        elif server.proxy_command:
            stream = Proxied(server.proxy_command)
        else:
            stream = connected_socket(server.host, server.port, timeouts.connect)
    except OSError as error:
        is_unknown = isinstance(error, socket.gaierror) and error.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        if is_unknown:
            advice = (
                "see that the name is right (`srf clusters` shows it), and that the VPN is up where only that knows it"
            )
            raise OpenConnectionError(f"no host is known here as {server.host!r}", advice) from None
        raise OpenConnectionError(f"{server} can't be reached: {error.strerror or error}") from None
    except Refused as error:
        raise OpenConnectionError(f"{server} can't be reached from the server before it: {error}") from None
    try:
        key_types = known_hosts.algorithms(lines, server.known_as)
        return OpenConnection(stream, key_types=key_types, timeout=timeouts.connect, allowed=dict(server.algorithms))
    except BaseException as error:
        program_missing = isinstance(stream, Proxied) and stream.not_found()
        with contextlib.suppress(Exception):
            stream.close()
        if isinstance(error, OpenConnectionError) and isinstance(stream, Proxied):
            advice = "see ProxyCommand in ~/.ssh/config: its program is not here" if program_missing else ""
            raise OpenConnectionError(f"its ProxyCommand leads nowhere: {stream.errors() or error}", advice) from None
        raise


def check_host_key(
    opened: OpenConnection, server: Endpoint, lines: list[known_hosts.KnownHostLine], label: str
) -> None:
    """Check that the server's host key is known.

    Raises:
        HostKeyFailed: the key is unknown, revoked, or not the known one.
    """
    kind, key = opened.host_key
    verdict = known_hosts.key_verdict(server, lines, kind, key)
    if verdict is KeyVerdict.KNOWN:
        opened.socket.limit = None
        return
    shown_key = f"{server} shows the {kind} key {known_hosts.fingerprint(key)}"
    if verdict is KeyVerdict.UNKNOWN:
        has_authority = any(line.marker == "@cert-authority" for line in known_hosts.lines_of(lines, server.known_as))
        where = shown_key + ("; certificates of host keys are not read" if has_authority else "")
        raise HostKeyFailed(
            f"the host key of {server.name} is not known", where=where, advice=f"run `srf trust {label}`"
        )
    if verdict is KeyVerdict.REVOKED:
        raise HostKeyFailed(
            f"the host key of {server.name} is revoked", where=shown_key, advice="ask the people who run the server"
        )
    known_line = next(line for line in known_hosts.lines_of(lines, server.known_as) if not line.marker)
    raise HostKeyFailed(
        f"the host key of {server.name} has changed: the server was set up anew, or somebody stands in between",
        where=f"{shown_key}; another one is known in {known_line.file}, line {known_line.number}",
        advice="ask the people who run the server for its fingerprint; if this one is right, run "
        f"`ssh-keygen -R '{server.known_as}' -f {known_line.file}` and `srf trust {label}`",
    )


def _watch(opened: OpenConnection, timeouts: ConnectionTimeouts) -> None:
    """Send keep-alives to a silent server, since a cut link gives no error."""
    opened.socket.patience = timeouts.patience
    while opened.alive:
        silence = time.monotonic() - opened.socket.last_received
        if silence >= timeouts.quiet:
            opened.sign_of_life()
            silence = 0.0
        time.sleep(min(1.0, max(timeouts.quiet - silence, 0.05)))


# ---- all connections of this process

_all: dict[Any, Connection] = {}
_all_lock = threading.Lock()


def shared(
    endpoint: Endpoint, secrets: Callable[[Endpoint], Secrets], timeouts: ConnectionTimeouts, label: str, password: int
) -> Connection:
    """The connection of this process for this endpoint, label and hash of a password."""
    with _all_lock:
        return _all.setdefault((endpoint, label, password), Connection(endpoint, secrets, timeouts, label))


def connections() -> list[Connection]:
    """All connections of this process, also closed ones."""
    return list(_all.values())


@contextlib.contextmanager
def _as_connection_lost() -> Iterator[None]:
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
    """An outage of a host: it waits between attempts, informs the user, and raises an error in the end."""

    def __init__(self, connection: Connection, label: str) -> None:
        self._connection, self._label = connection, label
        self._created = time.monotonic()
        self._began: float | None = None
        self._pause = 0.1

    def wait(self, error: ConnectionLost) -> None:
        """Wait before the next try.

        Raises:
            ConnectionFailed: the outage lasts too long, or a first connection fails for a reason that does not pass.
        """
        reason = str(error)
        if error.advice and not self._connection.times_connected:
            raise ConnectionFailed(f"{self._label} can't be reached: {reason}", advice=error.advice)
        now = time.monotonic()
        if self._began is None:  # before the first connection there was nothing but this outage
            self._began = now if self._connection.times_connected else self._created
        timeouts = self._connection.timeouts
        give_up_after = timeouts.again if self._connection.times_connected else timeouts.first
        outage_seconds = now - self._began
        if outage_seconds >= give_up_after:
            raise unreachable(self._label, reason, outage_seconds)
        publish(Note(f"{self._label} can't be reached ({reason}); trying again, {outage_seconds:.0f} s so far"))
        pause(min(self._pause, give_up_after - outage_seconds))
        self._pause = min(self._pause * 2, 15.0)

    def over(self) -> None:
        """Show that the host is reachable again, if it was not."""
        if self._began is not None:
            publish(Note(f"{self._label} is there again after {time.monotonic() - self._began:.0f} s"))
            self._began = None
