"""Sockets and paramiko's transport, with replacements for code of paramiko that hangs, fails or trusts too much."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paramiko as _paramiko

from slurm_ray_flow.blocks.processes import SocketProcess, start_on_socket
from slurm_ray_flow.core.errors import OptionError

STRANGERS_BYTES = 1024 * 1024
"""The most bytes that are read from a server before the check of its key; paramiko would read a line of any length."""


LARGEST_PACKET = 4 * 1024 * 1024
"""The largest packet in bytes; paramiko would read four gigabytes."""


class Socket:
    """A socket, or a channel of another connection, that notes the time of the last received bytes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.last_received = time.monotonic()
        self.keepalive_sent: float | None = None
        self.patience = 15.0
        self.received = 0
        self.limit: int | None = STRANGERS_BYTES

    @property
    def _closed(self) -> bool:  # paramiko looks at it while it waits for its thread
        return bool(getattr(self._inner, "_closed", False) or getattr(self._inner, "closed", False))

    def recv(self, size: int) -> bytes:
        if self.limit is not None and self.received > self.limit:
            raise ConnectionResetError(errno.ECONNRESET, "it sends something else than SSH does")
        if size > LARGEST_PACKET:
            raise ConnectionResetError(errno.ECONNRESET, f"it sends a packet of {size} bytes")
        try:
            data: bytes = self._inner.recv(size)
        except TimeoutError:
            self._check()
            raise
        self.last_received = time.monotonic()
        self.received += len(data)
        return data

    def send(self, data: bytes) -> int:
        try:
            sent: int = self._inner.send(data)
        except TimeoutError:
            self._check()
            raise
        return sent

    def _check(self) -> None:
        asked = self.keepalive_sent
        if asked is not None and self.last_received < asked and time.monotonic() - asked > self.patience:
            text = f"nothing was heard from it for {time.monotonic() - self.last_received:.0f} s"
            raise ConnectionResetError(errno.ECONNRESET, text)  # paramiko's thread wants both

    def settimeout(self, seconds: float | None) -> None:
        self._inner.settimeout(seconds)

    def close(self) -> None:
        self._inner.close()

    def getpeername(self) -> Any:
        return self._inner.getpeername()


def connected_socket(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection.

    Raises:
        OSError: it can't be made.
    """
    connection = socket.create_connection((host, port), timeout)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return connection


class Proxied(socket.socket):
    """A connection through a ProxyCommand, which ends when the connection is closed."""

    _process: SocketProcess | None = None

    def __init__(self, command: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with this
        with theirs:
            shell = os.environ.get("SHELL") or "/bin/sh"
            self._process = start_on_socket([shell, "-c", f"exec {command}"], theirs.fileno(), self._errors.fileno())

    def close(self) -> None:
        super().close()
        if self._process is not None:
            self._process.end()

    def not_found(self) -> bool:
        """Whether the shell could not start the program: its exit code is 127 or 126."""
        return self._process is not None and self._process.exit_code(within=0.2) in {126, 127}

    def errors(self) -> str:
        """The output of the command on stderr."""
        return os.pread(self._errors.fileno(), 1000, 0).decode(errors="replace").strip()


paramiko: Any = _paramiko  # it has no types of its own, and typeshed's are of an older one

_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_KINDS = {"kexalgorithms": "kex", "ciphers": "ciphers", "macs": "digests", "hostkeyalgorithms": "key_types"}
"""Paramiko's names of the kinds of algorithms in OpenSSH's configuration."""
_DISMISSAL_CODES = (2, 14)
"""The codes with which servers end a log-in: a protocol error (OpenSSH's "too many"), or no further method."""
_MOST_QUESTIONS = 20


class AuthHandler(paramiko.auth_handler.AuthOnlyHandler):  # type: ignore[misc]
    """Paramiko's handler, with two changes: it prepares for an answer before it sends the request, so that it does not
    miss an immediate answer, and it refuses too many questions.
    """

    def send_auth_request(self, username: str, method: str, finish_message: Callable[[Any], None] | None = None) -> Any:
        self.auth_method, self.username = method, username
        self.auth_event = threading.Event()
        message = paramiko.Message()
        message.add_byte(paramiko.common.cMSG_USERAUTH_REQUEST)
        for text in (username, "ssh-connection", method):
            message.add_string(text)
        if finish_message:
            finish_message(message)
        with self.transport.lock:
            self.transport._send_message(message)
        return self.wait_for_response(self.auth_event)

    def _parse_userauth_info_request(self, message: Any) -> None:
        for _ in range(3):
            message.get_binary()
        if message.get_int() > _MOST_QUESTIONS:
            raise paramiko.SSHException("it asks too many questions")
        message.rewind()
        super()._parse_userauth_info_request(message)


class Transport(paramiko.ServiceRequestingTransport):  # type: ignore[misc]
    """Paramiko's transport, with a bound for the wait for the first answer, and shorter pauses in it."""

    disconnect_message = ""
    """The server's message when it ended the connection."""

    def restrict(self, allowed: Mapping[str, Sequence[str]]) -> None:
        """Use no other algorithms than these.

        Raises:
            OptionError: none of one kind can be used here.
        """
        options = self.get_security_options()
        for name, algorithms in allowed.items():
            available = getattr(options, _KINDS[name])
            # Both names mean the same algorithm.
            aliases = ["curve25519-sha256@libssh.org"] if "curve25519-sha256" in algorithms else []
            chosen = tuple(algorithm for algorithm in available if algorithm in [*algorithms, *aliases])
            if not chosen:
                raise OptionError(
                    f"none of the algorithms that {name} allows in OpenSSH's configuration can be used here",
                    where=",".join(algorithms),
                    advice=f"allow one of these for this host, too: {','.join(available)}",
                )
            setattr(options, _KINDS[name], chosen)

    def ensure_session(self) -> None:
        if self._service_userauth_accepted:
            return
        message = paramiko.Message()
        message.add_byte(paramiko.common.cMSG_SERVICE_REQUEST)
        message.add_string("ssh-userauth")
        self._send_message(message)
        end = time.monotonic() + self.banner_timeout
        while not self._service_userauth_accepted:
            if not self.is_active() or time.monotonic() > end:
                raise paramiko.SSHException("the server closed the connection before the log-in")
            time.sleep(0.002)
        self.auth_handler = self.get_auth_handler()

    def _parse_disconnect(self, message: Any) -> None:
        code, text = message.get_int(), message.get_text()
        self.disconnect_message = text if code in _DISMISSAL_CODES else ""

    def prefer(self, key_types: Sequence[str]) -> None:
        """Ask for host keys of these kinds first, and for nothing that OpenSSH has given up."""
        options = self.get_security_options()
        chosen = [kind for kind in key_types if kind in options.key_types]
        options.key_types = (*chosen, *(kind for kind in options.key_types if kind not in chosen))
        options.ciphers = tuple(cipher for cipher in _CIPHERS if cipher in options.ciphers)
        options.digests = tuple(digest for digest in options.digests if "md5" not in digest)

    def get_auth_handler(self) -> AuthHandler:
        return AuthHandler(self)
