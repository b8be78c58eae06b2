"""The terminal that all launches of this process share: lines above, and one line at the bottom that moves."""

from __future__ import annotations

import codecs
import contextlib
import contextvars
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import IO, ClassVar

from prefect.logging.handlers import PrefectConsoleHandler
from rich.console import Console, RenderableType

from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.trace import tracing

_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("slurm_ray_flow_quiet", default=False)


_THEIRS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


class _LaunchFilter(logging.Filter):
    """Keeps the records of a launch's flow and tasks from the console. Prefect's API gets them all the same."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_quiet.get() and record.name.startswith(_THEIRS))


_filter = _LaunchFilter()


@contextlib.contextmanager
def quiet_console() -> Iterator[None]:
    """Show the launch's own progress alone, unless SRF_LOG=debug."""
    if tracing():
        yield
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler) and _filter not in handler.filters:
            handler.addFilter(_filter)
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
FRAME_SECONDS = 0.12
QUIET_SECONDS = 0.3
"""The moving line comes back when the function has written nothing for so long: it must not flicker between lines."""
START_OF_LINE = "\r\x1b[2K"


class Screen:
    """Writes lines to stderr, and the function's own bytes to stdout.

    Args:
        console: where lines go.
        live: whether the bottom line moves.

    Attributes:
        launches: how many are under way; with several, each line must say whose it is.
    """

    frame_seconds: ClassVar[float] = FRAME_SECONDS
    links: ClassVar[bool] = False
    """Whether an address is to be made a link; most terminals see to that by themselves."""

    def __init__(self, console: Console, live: bool) -> None:
        self.console, self.live = console, live
        self.launches = 0
        self._lock = threading.RLock()
        self._text, self._since = "", 0.0
        self._drawn = False
        self._written, self._line_open = 0.0, False
        self._wake = threading.Event()
        self._painter: threading.Thread | None = None

    def line(self, text: RenderableType) -> None:
        """Write a line above the moving one."""
        with self._lock:
            self._clear()
            self._close_line()
            self.console.print(text, soft_wrap=not self.live)

    def log(self, data: bytes) -> None:
        """Write what the function wrote."""
        with self._lock:
            self._clear()
            write_bytes(sys.stdout, data)
            self._written = time.monotonic()
            self._line_open = not data.endswith(b"\n") and _same_place(sys.stdout, self.console.file)

    def busy(self, text: str, since: float) -> None:
        """Show what is going on, and for how long; "" shows nothing."""
        with self._lock:
            self._clear()
            self._text, self._since = text, since
            if not (self.live and text):
                return
            if self._painter is None:
                self._painter = threading.Thread(target=self._paint, name="srf-screen", daemon=True)
                self._painter.start()
            self._wake.set()

    def _paint(self) -> None:
        """Redraw the moving line as long as there is one; wait without a cost while there is none."""
        number = 0
        while True:
            with self._lock:
                if not self._text:
                    self._wake.clear()
                elif time.monotonic() - self._written > QUIET_SECONDS and not self._line_open:
                    self._draw(FRAMES[number % len(FRAMES)])
            number += 1
            time.sleep(self.frame_seconds)
            self._wake.wait()

    def _moving(self, frame: str) -> str:
        seconds = format_duration(time.monotonic() - self._since)
        return f"  {frame} {self._text.replace(TIME, f'{seconds:>8}', 1)}"[: self.console.width - 1]

    def _draw(self, frame: str) -> None:
        self.console.file.write(START_OF_LINE + self._moving(frame))
        self.console.file.flush()
        self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            self.console.file.write(START_OF_LINE)
            self.console.file.flush()
            self._drawn = False

    def _close_line(self) -> None:
        """A function's last line may lack its end; the next line of ours must not stick to it."""
        if self._line_open:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._line_open = False


TIME = "\0"
"""Stands in a moving line where the time that has passed is to be shown."""


def _same_place(one: IO[str], other: IO[str]) -> bool:
    """Whether two streams end in one terminal, pipe or file."""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, ValueError):  # a stream of a notebook or a test has no file
        return False


def write_bytes(stream: IO[str], data: bytes) -> None:
    """Write to a text stream what the function wrote, byte for byte where the stream has bytes."""
    raw = getattr(stream, "buffer", None)
    stream.flush()
    if raw is None:
        stream.write(_decoder(stream).decode(data))
    else:
        raw.write(data)
    stream.flush()


_decoders: weakref.WeakKeyDictionary[IO[str], codecs.IncrementalDecoder] = weakref.WeakKeyDictionary()


def _decoder(stream: IO[str]) -> codecs.IncrementalDecoder:
    """What a function writes comes in pieces, which may be cut within a letter."""
    return _decoders.setdefault(stream, codecs.getincrementaldecoder("utf-8")(errors="replace"))
