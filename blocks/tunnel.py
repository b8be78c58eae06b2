"""A tunnel to a web page of a cluster, for this machine's user alone: a listener on loopback.

The cluster's token is added on the way, so a browser needs none. Others on this machine can reach the listener, too,
and so can pages of other sites in the same browser: only who comes with the key of the printed URL is let through.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from slurm_ray_flow.blocks.listener import Listener
from slurm_ray_flow.blocks.ssh.open_connection import send_all

HEAD_SECONDS = 30.0
LONGEST_HEAD = 64 * 1024
PIECE = 64 * 1024
END = b"\r\n\r\n"
Reach = Callable[[str, int], Any]
"""A function that opens a socket to a host and port as the cluster reaches them."""


class Tunnel(Listener):
    """A tunnel that serves from its creation on.

    Args:
        reach: leads to the cluster.
        host, port: of the page, there.
        token: what the page wants to see.
        own_port: where to listen; 0 takes a free one.

    Raises:
        OSError: that port is taken.
    """

    def __init__(self, reach: Reach, host: str, port: int, token: str, own_port: int = 0) -> None:
        self._reach, self._host, self._port, self._token = reach, host, port, token
        self._key = secrets.token_urlsafe(24)
        listening = socket.create_server(("127.0.0.1", own_port))
        self._own_port: int = listening.getsockname()[1]
        self._cookie = f"srf-{self._own_port}"
        super().__init__(listening, "srf-tunnel")

    @property
    def url(self) -> str:
        """The address for the browser, with the key in it."""
        return f"http://127.0.0.1:{self._own_port}/?srf={self._key}"

    def _receive(self, visitor: socket.socket) -> None:
        with visitor, contextlib.suppress(OSError, ValueError):
            visitor.settimeout(HEAD_SECONDS)
            head, rest = _head_of(visitor)
            line, headers = _parsed(head)
            given = dict(parse_qsl(urlsplit(line.split(" ")[1]).query)).get("srf", "")
            if hmac.compare_digest(given.encode(), self._key.encode()):
                cookie = f"Set-Cookie: {self._cookie}={self._key}; HttpOnly; SameSite=Strict; Path=/"
                visitor.sendall(_answer("303 See Other", "Location: /", cookie))
            elif not self._knows(headers):
                visitor.sendall(_answer("403 Forbidden", text="Open the whole URL that `srf dashboard` has printed."))
            else:
                self._pass_on(visitor, _rewritten(line, headers, self._token) + rest)

    def _knows(self, headers: list[tuple[str, str]]) -> bool:
        given = [part.strip() for name, value in headers if name.lower() == "cookie" for part in value.split(";")]
        return any(hmac.compare_digest(part.encode(), f"{self._cookie}={self._key}".encode()) for part in given)

    def _pass_on(self, visitor: socket.socket, first: bytes) -> None:
        try:
            far = self._reach(self._host, self._port)
        except Exception as error:  # whatever it is, the page says so
            visitor.sendall(_answer("502 Bad Gateway", text=f"The dashboard can't be reached: {error}"))
            return
        join(visitor, far, first)


def join(visitor: socket.socket, far: Any, first: bytes = b"") -> None:
    """Copy bytes in both directions until one end closes; `first` is sent to the far end before."""
    try:
        far.settimeout(None)
        visitor.settimeout(None)
        send_all(far, first)
        threading.Thread(target=_pump, args=(visitor, far), daemon=True, name="srf-tunnel").start()
        _pump(far, visitor)
    finally:
        with contextlib.suppress(Exception):
            far.close()
        with contextlib.suppress(OSError):
            visitor.shutdown(socket.SHUT_RDWR)


def _head_of(visitor: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while END not in data:
        more = visitor.recv(PIECE)
        if not more or len(data) > LONGEST_HEAD:
            raise ValueError("no request")
        data += more
    head, _, rest = data.partition(END)
    return head, rest


def _parsed(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    line, *rest = head.decode("latin-1").split("\r\n")
    if line.count(" ") != 2:
        raise ValueError("no request")
    pairs = [each.partition(":") for each in rest]
    return line, [(name.strip(), value.strip()) for name, _, value in pairs]


def _rewritten(line: str, headers: list[tuple[str, str]], token: str) -> bytes:
    """The request with the token added, and closing its connection unless that becomes a web socket."""
    upgrade = any(name.lower() == "upgrade" for name, _ in headers)
    left_out = {"authorization"} if upgrade else {"authorization", "connection", "keep-alive"}
    kept = [f"{name}: {value}" for name, value in headers if name.lower() not in left_out]
    added = [f"Authorization: Bearer {token}", *([] if upgrade else ["Connection: close"])]
    return "\r\n".join([line, *kept, *added]).encode("latin-1") + END


def _answer(status: str, *headers: str, text: str = "") -> bytes:
    body = f"{text}\n".encode() if text else b""
    usual = ["Content-Type: text/plain; charset=utf-8", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, *usual]).encode() + END + body


def _pump(source: Any, target: Any) -> None:
    """Copy bytes until one end closes."""
    with contextlib.suppress(Exception):  # paramiko has several exceptions for that
        while data := source.recv(PIECE):
            send_all(target, data)
    with contextlib.suppress(Exception):
        target.shutdown(socket.SHUT_WR)
