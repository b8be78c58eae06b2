"""The screen that all launches of this process share: lines, and one moving line at the bottom."""

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

from rich.console import Console, RenderableType

from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.trace import tracing

_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("slurm_ray_flow_quiet", default=False)


PREFECT_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


class _LaunchFilter(logging.Filter):
    """A log filter that keeps records of a launch's flow and tasks from the console, and not from Prefect's API."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_quiet.get() and record.name.startswith(PREFECT_LOGGERS))


_filter = _LaunchFilter()


@contextlib.contextmanager
def quiet_console() -> Iterator[None]:
    """Keep Prefect's log lines from the console, unless SRF_LOG=debug."""
    if tracing():
        yield
        return
    from prefect.logging.handlers import PrefectConsoleHandler

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
"""Seconds without output after which the moving line comes back, so that it does not flicker."""
START_OF_LINE = "\r\x1b[2K"


class Screen:
    """Writes lines to stderr, and the function's own bytes to stdout.

    Args:
        console: where lines go.
        live: whether the bottom line moves.

    Attributes:
        launches: the number of launches under way; with several, each line names its run.
    """

    frame_seconds: ClassVar[float] = FRAME_SECONDS
    links: ClassVar[bool] = False
    """Whether addresses are written as links; most terminals make links by themselves."""

    def __init__(self, console: Console, live: bool) -> None:
        self.console, self.live = console, live
        self.launches = 0
        self._lock = threading.RLock()
        self._text, self._since = "", 0.0
        self._drawn = False
        self._written_at, self._line_open = 0.0, False
        self._wake = threading.Event()
        self._painter: threading.Thread | None = None

    def line(self, text: RenderableType) -> None:
        """Write a line above the moving one."""
        with self._lock:
            self._clear()
            self._close_line()
            self.console.print(text, soft_wrap=not self.live)

    def log(self, data: bytes) -> None:
        """Write output of the function."""
        with self._lock:
            self._clear()
            write_bytes(sys.stdout, data)
            self._written_at = time.monotonic()
            self._line_open = not data.endswith(b"\n") and _is_same_file(sys.stdout, self.console.file)

    def busy(self, text: str, since: float) -> None:
        """Show a text and its time in the moving line; "" shows none."""
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
        """Redraw the moving line as long as there is one, and sleep while there is none."""
        number = 0
        while True:
            with self._lock:
                if not self._text:
                    self._wake.clear()
                elif time.monotonic() - self._written_at > QUIET_SECONDS and not self._line_open:
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
        """End a last line of the function's that lacks its line break."""
        if self._line_open:
            sys.stdout.write("\n")
            sys.stdout.flush()
            self._line_open = False


TIME = "\0"
"""The mark in a moving line that is replaced by the elapsed time."""


def _is_same_file(first: IO[str], second: IO[str]) -> bool:
    """Whether two streams write to one terminal, pipe or file."""
    try:
        return os.path.samestat(os.fstat(first.fileno()), os.fstat(second.fileno()))
    except (OSError, ValueError):  # a stream of a notebook or a test has no file
        return False


def write_bytes(stream: IO[str], data: bytes) -> None:
    """Write output of the function to a text stream, byte for byte where the stream has a buffer of bytes."""
    raw = getattr(stream, "buffer", None)
    stream.flush()
    if raw is None:
        stream.write(_decoder(stream).decode(data))
    else:
        raw.write(data)
    stream.flush()


_decoders: weakref.WeakKeyDictionary[IO[str], codecs.IncrementalDecoder] = weakref.WeakKeyDictionary()


def _decoder(stream: IO[str]) -> codecs.IncrementalDecoder:
    """The decoder of a stream, since pieces of output may be cut within a letter."""
    return _decoders.setdefault(stream, codecs.getincrementaldecoder("utf-8")(errors="replace"))
