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
    """A function that reads from a channel; after so many seconds in all it raises TimeoutError."""
    end = time.monotonic() + seconds

    def read(size: int) -> bytes:
        remaining = end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError(f"nothing that we know came within {seconds:.0f} s")
        channel.settimeout(remaining)
        data: bytes = channel.recv(size)
        return data

    return read


def reading_errors(channel: Any) -> Callable[[int], bytes]:
    """A function that reads the stderr of a channel's command, and waits for it without a bound."""

    def read(size: int) -> bytes:
        while True:
            with contextlib.suppress(TimeoutError):
                data: bytes = channel.recv_stderr(size)
                return data

    return read


def send_all(channel: Any, data: bytes | memoryview) -> None:
    """Send all data; paramiko's own sendall copies the rest for each packet.

    Raises:
        OSError: it can't be sent.
    """
    view = memoryview(data)
    while view:
        try:
            sent = channel.send(bytes(view[:_PIECE]))
        except OSError:
            raise
        except Exception as error:  # paramiko raises several types for a connection that is lost while it writes
            raise OSError(str(error) or "the connection was lost") from None
        if not sent:
            raise OSError("the channel is closed")
        view = view[sent:]


WINDOW = 8 * 1024 * 1024
"""The window in bytes, and the size of one read, because paramiko moves the rest of its buffer at each read."""
PACKET = 1024 * 1024
_LIST_SECONDS, _SIGN_SECONDS = 5.0, 120.0
"""Seconds for an SSH agent to list its keys, and to sign: the agent may ask its user to confirm, or to touch a key."""
_LONGEST_MESSAGE = 500
_LOGGER = "paramiko.slurm_ray_flow"

Answers = Callable[[str, str, Sequence[tuple[str, bool]]], Sequence[str]]
"""A function that answers a server's questions: title, instructions, and questions, each with whether to echo."""


class OpenConnectionError(Exception):
    """The connection is lost, or can't be opened.

    Attributes:
        advice: what the user can try if repetition is of no use; "" if it may be of use.
    """

    def __init__(self, text: str, advice: str = "") -> None:
        super().__init__(text)
        self.advice = advice


class Refused(Exception):
    """The server opens no further channel."""


class Denied(Exception):
    """The server refused a key, an answer or a password. `methods` are the methods that it accepts now."""

    def __init__(self, methods: Sequence[str]) -> None:
        super().__init__(", ".join(methods))
        self.methods = tuple(methods)


class Dismissed(OpenConnectionError):
    """The server ended the log-in with a message; further attempts are of no use."""


class Closed(OpenConnectionError):
    """The server closed the connection after a success: the account may not log in, or the link was lost."""


class OpenConnection:
    """One connection to one server, before the check of its host key and before a log-in."""

    def __init__(
        self, inner: Any, *, key_types: Sequence[str], timeout: float, allowed: Mapping[str, Sequence[str]]
    ) -> None:
        self.socket = Socket(inner)
        logging.getLogger(_LOGGER).propagate = False  # it would log names, and errors that are raised anyway
        logging.getLogger(_LOGGER).addHandler(logging.NullHandler())
        self._transport = Transport(self.socket, default_window_size=WINDOW, default_max_packet_size=PACKET)
        self._transport.set_log_channel(_LOGGER)
        self._transport.banner_timeout = self._transport.handshake_timeout = timeout
        self._transport.auth_timeout = 600  # a person may have to look for a code
        self._transport.restrict(allowed)
        self._transport.prefer(key_types)
        try:
            with self._own_errors():
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

    # ---- log-in: each function gives the methods of the next step, none after success

    def methods(self, user: str) -> Sequence[str]:
        """The log-in methods of the server for this user."""
        with self._own_errors():
            try:
                self._transport.auth_none(user)
            except paramiko.BadAuthenticationType as error:
                return tuple(error.allowed_types)
        return ()

    def log_in_by_key(self, user: str, key: Any) -> Sequence[str]:
        return self._authenticate(lambda: self._transport.auth_publickey(user, key))

    def log_in_by_password(self, user: str, password: str) -> Sequence[str]:
        return self._authenticate(lambda: self._transport.auth_password(user, password, fallback=False))

    def log_in_by_questions(self, user: str, answers: Answers) -> Sequence[str]:
        """Log in by keyboard-interactive; `answers` is called in this thread, so that Ctrl-C and contexts work."""
        messages: queue.Queue[Any] = queue.Queue()
        given_answers: queue.Queue[Sequence[str]] = queue.Queue()

        def handler(title: str, instructions: str, questions: Sequence[tuple[str, bool]]) -> Sequence[str]:
            messages.put((title, instructions, list(questions)))
            return given_answers.get(timeout=600)

        def prove() -> None:
            try:
                messages.put(self._authenticate(lambda: self._transport.auth_interactive(user, handler)))
            except BaseException as error:
                messages.put(error)

        threading.Thread(target=prove, daemon=True, name="srf-log-in").start()
        while True:
            message = messages.get(timeout=660)
            if isinstance(message, BaseException):
                raise message
            if not (isinstance(message, tuple) and len(message) == 3 and isinstance(message[2], list)):
                methods: Sequence[str] = message
                return methods
            try:
                given_answers.put(answers(*message))
            except BaseException:
                self.close()
                raise

    def _authenticate(self, prove: Callable[[], Sequence[str]]) -> Sequence[str]:
        earlier_banner = self._transport.auth_handler.banner
        with self._own_errors():
            try:
                return tuple(prove())
            except paramiko.BadAuthenticationType as error:
                raise Denied(error.allowed_types) from None
            except paramiko.AuthenticationException as error:
                if not self.alive and self._transport.disconnect_message:
                    raise Dismissed(self._transport.disconnect_message) from None
                if not self.alive:
                    raise Closed(self._closed_message(earlier_banner)) from None
                if "timeout" in str(error).lower():
                    raise OpenConnectionError("the server did not answer the log-in") from None
                raise Denied(()) from None

    def _closed_message(self, earlier_banner: bytes | None) -> str:
        """The error for a closed connection, with the server's last message, in which PAM gives its reason."""
        banner = self._transport.auth_handler.banner
        text = (banner or b"").decode(errors="replace").strip() if banner != earlier_banner else ""
        return "the server closed the connection during the log-in" + (f": {text[:_LONGEST_MESSAGE]}" if text else "")

    # ---- channels

    def channel(self, timeout: float = 30.0) -> Any:
        """A new channel for a command.

        Raises:
            Refused: the server allows no further channel.
            OpenConnectionError: the connection is lost.
        """
        return self._open_channel(lambda: self._transport.open_session(timeout=timeout))

    def tunnel(self, host: str, port: int, timeout: float) -> Any:
        """A channel to another server."""
        return self._open_channel(
            lambda: self._transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=timeout)
        )

    def _open_channel(self, open_: Callable[[], Any]) -> Any:
        with self._own_errors():
            try:
                return open_()
            except paramiko.ChannelException as error:
                raise Refused(error.text) from None

    def sign_of_life(self) -> None:
        """Send a keep-alive and wait for the answer; without an answer the connection is closed."""
        self.socket.keepalive_sent = time.monotonic()
        with contextlib.suppress(Exception):
            self._transport.global_request("keepalive@openssh.com", wait=True)
        self.socket.keepalive_sent = None

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._transport.close()
        with contextlib.suppress(Exception):
            self.socket.close()

    @contextlib.contextmanager
    def _own_errors(self) -> Any:
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
        OpenConnectionError: the key can't be used.
    """
    try:
        status = path.stat()
        if status.st_uid == os.getuid() and status.st_mode & 0o077:
            raise OpenConnectionError(
                f"{path} not, others can read it: run `chmod 600` on it"
            )  # OpenSSH passes it by, too
        key = _load_key(path, passphrase.encode() if passphrase else None)
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


def _load_key(path: Path, passphrase: bytes | None) -> Any:
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
    """The keys of the SSH agent at a socket; none for an agent that is missing, or does not answer."""
    if path is None:
        return []
    agent, agent_socket = paramiko.agent.AgentSSH(), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    agent_socket.settimeout(_LIST_SECONDS)
    try:
        agent_socket.connect(str(path))
        agent._connect(agent_socket)
    except (paramiko.SSHException, OSError):
        agent_socket.close()
        return []
    agent_socket.settimeout(_SIGN_SECONDS)
    return list(agent.get_keys())


def public_bytes(key: Any) -> bytes:
    data: bytes = key.asbytes()
    return data
