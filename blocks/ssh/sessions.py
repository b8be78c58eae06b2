"""Shares out a connection's channels: a server may allow as few as one (MaxSessions 1).

Then our program there steps aside while files travel: its channel ends, and the next question starts it again.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from slurm_ray_flow.blocks.ssh.wire import Refused

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
        """What ends the channels of our programs."""

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
        """A channel for our program; where there can be only one, when no files travel."""
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
