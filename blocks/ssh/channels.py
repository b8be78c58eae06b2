"""Reads from channels and writes to them, within bounds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

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
    """Send it whole. Paramiko's own sendall copies what is left each time.

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
