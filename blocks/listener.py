"""A socket that is listened at, whose visitors are received side by side."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from typing import Any


class Listener:
    """Listens from its creation on; a subclass says how a visitor is received.

    Args:
        listening: the socket.
        name: of the threads that receive.
    """

    def __init__(self, listening: socket.socket, name: str) -> None:
        self._listening, self._name = listening, name
        self._thread(self._serve)

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _receive(self, visitor: socket.socket) -> None:
        raise NotImplementedError

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                visitor, _ = self._listening.accept()
                self._thread(functools.partial(self._receive, visitor))

    def _thread(self, target: Callable[[], Any]) -> threading.Thread:
        thread = threading.Thread(target=target, daemon=True, name=self._name)
        thread.start()
        return thread
