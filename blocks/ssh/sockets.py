"""Sockets that know when they were heard last, and how much a stranger may say."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

from slurm_ray_flow.blocks.shell import joined

STRANGERS_BYTES = 1024 * 1024
"""What is read from a server before its key is known; paramiko itself would keep a line of any length."""


LARGEST_PACKET = 4 * 1024 * 1024
"""We ask for packets of at most one mebibyte; paramiko would read four gigabytes."""


class Socket:
    """A socket, or a channel of another connection, that knows when it was heard last."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.heard = time.monotonic()
        self.asked: float | None = None
        self.patience = 15.0
        self.received = self.sent = 0
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
        self.heard = time.monotonic()
        self.received += len(data)
        return data

    def send(self, data: bytes) -> int:
        try:
            sent: int = self._inner.send(data)
        except TimeoutError:
            self._check()
            raise
        self.sent += sent
        return sent

    def _check(self) -> None:
        asked = self.asked
        if asked is not None and self.heard < asked and time.monotonic() - asked > self.patience:
            text = f"nothing was heard from it for {time.monotonic() - self.heard:.0f} s"
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
    opened = socket.create_connection((host, port), timeout)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return opened


class Proxied(socket.socket):
    """A connection through a command of a shell, which OpenSSH calls a ProxyCommand; that ends when this is closed."""

    _end: Callable[[], None] | None = None

    def __init__(self, command: str) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with this
        with theirs:
            shell = os.environ.get("SHELL") or "/bin/sh"
            self._end = joined([shell, "-c", f"exec {command}"], theirs.fileno(), self._errors.fileno())

    def close(self) -> None:
        super().close()
        if self._end is not None:
            self._end()

    def words(self) -> str:
        """What the command has said on stderr."""
        return os.pread(self._errors.fileno(), 1000, 0).decode(errors="replace").strip()
