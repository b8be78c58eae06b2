"""A tunnel to a web page of a cluster, for this machine's user alone: a listener on loopback.

The tunnel adds the cluster's token, so a browser needs none. Other users of this machine, and pages of other sites in
the same browser, can reach the listener, too: only requests with the key of the printed URL are let through.
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
        reach: opens a socket from the cluster.
        host, port: the address of the page on the cluster.
        token: the token that the page requires.
        own_port: the port of the listener; 0 takes a free one.

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
            head, body_start = _read_head(visitor)
            line, headers = _parse_head(head)
            key = dict(parse_qsl(urlsplit(line.split(" ")[1]).query)).get("srf", "")
            if hmac.compare_digest(key.encode(), self._key.encode()):
                cookie = f"Set-Cookie: {self._cookie}={self._key}; HttpOnly; SameSite=Strict; Path=/"
                visitor.sendall(_response("303 See Other", "Location: /", cookie))
            elif not self._has_key_cookie(headers):
                visitor.sendall(_response("403 Forbidden", text="Open the whole URL that `srf dashboard` has printed."))
            else:
                self._pass_on(visitor, _authorized_request(line, headers, self._token) + body_start)

    def _has_key_cookie(self, headers: list[tuple[str, str]]) -> bool:
        cookies = [part.strip() for name, value in headers if name.lower() == "cookie" for part in value.split(";")]
        return any(hmac.compare_digest(part.encode(), f"{self._cookie}={self._key}".encode()) for part in cookies)

    def _pass_on(self, visitor: socket.socket, first: bytes) -> None:
        try:
            far = self._reach(self._host, self._port)
        except Exception as error:  # whatever it is, the page says so
            visitor.sendall(_response("502 Bad Gateway", text=f"The dashboard can't be reached: {error}"))
            return
        join_sockets(visitor, far, first)


def join_sockets(visitor: socket.socket, far: Any, first: bytes = b"") -> None:
    """Copy bytes in both directions until one end closes, after sending `first` to the far end."""
    try:
        far.settimeout(None)
        visitor.settimeout(None)
        send_all(far, first)
        threading.Thread(target=_copy_bytes, args=(visitor, far), daemon=True, name="srf-tunnel").start()
        _copy_bytes(far, visitor)
    finally:
        with contextlib.suppress(Exception):
            far.close()
        with contextlib.suppress(OSError):
            visitor.shutdown(socket.SHUT_RDWR)


def _read_head(visitor: socket.socket) -> tuple[bytes, bytes]:
    data = b""
    while END not in data:
        received = visitor.recv(PIECE)
        if not received or len(data) > LONGEST_HEAD:
            raise ValueError("no request")
        data += received
    head, _, rest = data.partition(END)
    return head, rest


def _parse_head(head: bytes) -> tuple[str, list[tuple[str, str]]]:
    line, *rest = head.decode("latin-1").split("\r\n")
    if line.count(" ") != 2:
        raise ValueError("no request")
    pairs = [header.partition(":") for header in rest]
    return line, [(name.strip(), value.strip()) for name, _, value in pairs]


def _authorized_request(line: str, headers: list[tuple[str, str]], token: str) -> bytes:
    """The request with the token, and with `Connection: close` unless it opens a web socket."""
    upgrade = any(name.lower() == "upgrade" for name, _ in headers)
    left_out = {"authorization"} if upgrade else {"authorization", "connection", "keep-alive"}
    lines = [f"{name}: {value}" for name, value in headers if name.lower() not in left_out]
    added_lines = [f"Authorization: Bearer {token}", *([] if upgrade else ["Connection: close"])]
    return "\r\n".join([line, *lines, *added_lines]).encode("latin-1") + END


def _response(status: str, *headers: str, text: str = "") -> bytes:
    body = f"{text}\n".encode() if text else b""
    usual_headers = ["Content-Type: text/plain; charset=utf-8", f"Content-Length: {len(body)}", "Connection: close"]
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, *usual_headers]).encode() + END + body


def _copy_bytes(source: Any, target: Any) -> None:
    """Copy bytes until one end closes."""
    with contextlib.suppress(Exception):  # paramiko has several exceptions for that
        while data := source.recv(PIECE):
            send_all(target, data)
    with contextlib.suppress(Exception):
        target.shutdown(socket.SHUT_WR)
