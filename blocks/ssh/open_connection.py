"""An open connection, its log-in, its channels, and private keys."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks.ssh.transport import Socket, Transport, paramiko

_PIECE = 32 * 1024 - 64


def reading(channel: Any, seconds: float) -> Callable[[int], bytes]:
    """Reads from a channel for so many seconds in all, then raises TimeoutError."""
    end = time.monotonic() + seconds

    def read(size: int) -> bytes:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"nothing that we know came within {seconds:.0f} s")
        channel.settimeout(left)
        data: bytes = channel.recv(size)
        return data

    return read


def reading_errors(channel: Any) -> Callable[[int], bytes]:
    """Reads what a channel's command writes to stderr, to its end, however long it is silent."""

    def read(size: int) -> bytes:
        while True:
            with contextlib.suppress(TimeoutError):
                data: bytes = channel.recv_stderr(size)
                return data

    return read


def send_all(channel: Any, data: bytes | memoryview) -> None:
    """Send all data. Paramiko's own sendall copies the rest each time.

    Raises:
        OSError: it can't be sent.
    """
    view = memoryview(data)
    while view:
        try:
            sent = channel.send(bytes(view[:_PIECE]))
        except OSError:
            raise
        except Exception as error:  # paramiko has several for a connection that goes while it writes
            raise OSError(str(error) or "the connection was lost") from None
        if not sent:
            raise OSError("the channel is closed")
        view = view[sent:]


WINDOW = 8 * 1024 * 1024
"""The window in bytes, which is also the size of one read, since paramiko moves all that is left after each."""
PACKET = 1024 * 1024
_AGENT, _TOUCH = 5.0, 120.0
"""Seconds for an SSH agent to list its keys, and to sign: it may ask its user, or for a touch of a key."""
_WORDS = 500
_LOGGER = "paramiko.slurm_ray_flow"

Answers = Callable[[str, str, Sequence[tuple[str, bool]]], Sequence[str]]
"""A function that answers a server's questions: title, instructions, questions with whether answers may be seen."""


class OpenConnectionError(Exception):
    """The connection is lost, or can't be made; the text says why.

    Attributes:
        advice: what to try where a next try of the same is of no use; "" where it may do.
    """

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


class Refused(Exception):
    """The server opens no further channel."""


class Denied(Exception):
    """The server refused a key, an answer or a password. `methods` are those that it takes now."""

    def __init__(self, methods: Sequence[str]) -> None:
        super().__init__(", ".join(methods))
        self.methods = tuple(methods)


class Dismissed(OpenConnectionError):
    """The server ended the log-in with a message: more attempts are of no use."""


class Closed(OpenConnectionError):
    """The server closed the connection after a success: the account may not log in, or the link was lost."""


class OpenConnection:
    """One connection to one server, whose host key is not judged yet and where nobody is logged in yet."""

    def __init__(
        self, inner: Any, *, key_types: Sequence[str], timeout: float, allowed: Mapping[str, Sequence[str]]
    ) -> None:
        self.socket = Socket(inner)
        logging.getLogger(_LOGGER).propagate = False  # it would tell of names, and print what we raise ourselves
        logging.getLogger(_LOGGER).addHandler(logging.NullHandler())
        self._transport = Transport(self.socket, default_window_size=WINDOW, default_max_packet_size=PACKET)
        self._transport.set_log_channel(_LOGGER)
        self._transport.banner_timeout = self._transport.handshake_timeout = timeout
        self._transport.auth_timeout = 600  # a person may have to look for a code
        self._transport.restrict(allowed)
        self._transport.prefer(key_types)
        try:
            with self._told():
                self._transport.start_client(timeout=timeout)
            if not self._transport.initial_kex_done:  # paramiko returns without a word
                raise OpenConnectionError(f"it did not show a host key within {timeout:.0f} s")
        except BaseException:
            self.close()
            raise

    @property
    def host_key(self) -> tuple[str, bytes]:
        """The server's host key: its type and its bytes."""
        key = self._transport.get_remote_server_key()
        return key.get_name(), key.asbytes()

    @property
    def alive(self) -> bool:
        return bool(self._transport.is_active())

    # ---- log-in: each gives the methods that are still needed, none when we are in

    def methods(self, user: str) -> Sequence[str]:
        """The log-in methods of the server for this user."""
        with self._told():
            try:
                self._transport.auth_none(user)
            except paramiko.BadAuthenticationType as error:
                return tuple(error.allowed_types)
        return ()

    def log_in_by_key(self, user: str, key: Any) -> Sequence[str]:
        return self._proved(lambda: self._transport.auth_publickey(user, key))

    def log_in_by_password(self, user: str, password: str) -> Sequence[str]:
        return self._proved(lambda: self._transport.auth_password(user, password, fallback=False))

    def log_in_by_questions(self, user: str, answers: Answers) -> Sequence[str]:
        """Keyboard-interactive: `answers` is called in this thread, so that Ctrl-C and contexts work."""
        asked: queue.Queue[Any] = queue.Queue()
        given: queue.Queue[Sequence[str]] = queue.Queue()

        def handler(title: str, instructions: str, questions: Sequence[tuple[str, bool]]) -> Sequence[str]:
            asked.put((title, instructions, list(questions)))
            return given.get(timeout=600)

        def prove() -> None:
            try:
                asked.put(self._proved(lambda: self._transport.auth_interactive(user, handler)))
            except BaseException as error:
                asked.put(error)

        threading.Thread(target=prove, daemon=True, name="srf-log-in").start()
        while True:
            message = asked.get(timeout=660)
            if isinstance(message, BaseException):
                raise message
            if not (isinstance(message, tuple) and len(message) == 3 and isinstance(message[2], list)):
                rest: Sequence[str] = message
                return rest
            try:
                given.put(answers(*message))
            except BaseException:
                self.close()
                raise

    def _proved(self, prove: Callable[[], Sequence[str]]) -> Sequence[str]:
        before = self._transport.auth_handler.banner
        with self._told():
            try:
                return tuple(prove())
            except paramiko.BadAuthenticationType as error:
                raise Denied(error.allowed_types) from None
            except paramiko.AuthenticationException as error:
                if not self.alive and self._transport.farewell:
                    raise Dismissed(self._transport.farewell) from None
                if not self.alive:
                    raise Closed(self._said_since(before)) from None
                if "timeout" in str(error).lower():
                    raise OpenConnectionError("the server did not answer the log-in") from None
                raise Denied(()) from None

    def _said_since(self, before: bytes | None) -> str:
        """The error for a closed connection, with the server's last message, in which PAM gives its reason."""
        last = self._transport.auth_handler.banner
        words = (last or b"").decode(errors="replace").strip() if last != before else ""
        return "the server closed the connection during the log-in" + (f": {words[:_WORDS]}" if words else "")

    # ---- what goes over it

    def channel(self, timeout: float = 30.0) -> Any:
        """A new channel for a command.

        Raises:
            Refused: the server wants no more of them.
            WireError: the connection is lost.
        """
        return self._opened(lambda: self._transport.open_session(timeout=timeout))

    def tunnel(self, host: str, port: int, timeout: float) -> Any:
        """A channel to another server."""
        return self._opened(
            lambda: self._transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=timeout)
        )

    def _opened(self, open_: Callable[[], Any]) -> Any:
        with self._told():
            try:
                return open_()
            except paramiko.ChannelException as error:
                raise Refused(error.text) from None

    def sign_of_life(self) -> None:
        """Ask for a sign of life and wait for it; without one the connection is closed."""
        self.socket.asked = time.monotonic()
        with contextlib.suppress(Exception):
            self._transport.global_request("keepalive@openssh.com", wait=True)
        self.socket.asked = None

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._transport.close()
        with contextlib.suppress(Exception):
            self.socket.close()

    @contextlib.contextmanager
    def _told(self) -> Any:
        try:
            yield
        except paramiko.IncompatiblePeer as error:
            advice = "see what ~/.ssh/config allows for this host (Ciphers, MACs, KexAlgorithms, HostKeyAlgorithms); "
            advice += "a server that offers only what OpenSSH has given up is to be updated"
            raise OpenConnectionError(f"no common algorithm: {error}", advice) from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            if isinstance(error, paramiko.BadAuthenticationType):
                raise
            raise OpenConnectionError(
                getattr(error, "strerror", None) or str(error) or "the server closed the connection"
            ) from None


def execute(channel: Any, command: str) -> None:
    """Run a command, without paramiko's unbounded wait for the server's consent. A refusal ends the channel."""
    message = paramiko.Message()
    message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("exec")
    message.add_boolean(True)
    message.add_string(command)
    channel.transport._send_user_message(message)


# ---- keys


class Locked(Exception):
    """A key file needs its passphrase, or another one."""


def key_from_file(path: Path, passphrase: str | None) -> Any:
    """A private key, with its certificate if one lies beside it.

    Raises:
        Locked: it needs a passphrase, or this one is wrong.
        WireError: it is no key that we can use.
    """
    try:
        status = path.stat()
        if status.st_uid == os.getuid() and status.st_mode & 0o077:
            raise OpenConnectionError(
                f"{path} not, others can read it: run `chmod 600` on it"
            )  # OpenSSH passes it by, too
        key = _loaded(path, passphrase.encode() if passphrase else None)
        certificate = Path(f"{path}-cert.pub")
        if certificate.exists():
            key.load_certificate(str(certificate))
    except (paramiko.PasswordRequiredException, TypeError):
        raise Locked(str(path)) from None
    except ValueError as error:
        if passphrase or "password" in str(error).lower() or "decrypt" in str(error).lower():  # a wrong one is junk
            raise Locked(str(path)) from None
        raise OpenConnectionError(f"{path} is no private key") from None
    except (paramiko.SSHException, OSError) as error:
        raise OpenConnectionError(f"{path} can't be read: {error}") from None
    return key


def _loaded(path: Path, passphrase: bytes | None) -> Any:
    try:
        return paramiko.PKey.from_path(path, passphrase)
    except paramiko.PasswordRequiredException:
        raise
    except paramiko.SSHException as error:
        serialization = paramiko.pkey.serialization  # of the package that paramiko itself reads keys with
        plain = serialization.load_pem_private_key(path.read_bytes(), passphrase)  # OpenSSL's form: "BEGIN PRIVATE KEY"
        form = serialization.PrivateFormat.OpenSSH
        text = plain.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
        for kind in (paramiko.RSAKey, paramiko.ECDSAKey, paramiko.Ed25519Key):
            with contextlib.suppress(paramiko.SSHException):
                return kind.from_private_key(io.StringIO(text))
        raise error


def keys_from_agent(path: Path | None) -> list[Any]:
    """The keys of the SSH agent at a socket; none where it is missing, or does not answer."""
    if path is None:
        return []
    agent, connected = paramiko.agent.AgentSSH(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(_AGENT)
    try:
        connected.connect(str(path))
        agent._connect(connected)
    except (paramiko.SSHException, OSError):
        connected.close()
        return []
    connected.settimeout(_TOUCH)
    return list(agent.get_keys())


def public_bytes(key: Any) -> bytes:
    found: bytes = key.asbytes()
    return found
