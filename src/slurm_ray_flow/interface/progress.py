"""The launch in the terminal: seven steps with their times, then the log."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

from slurm_ray_flow.core.progress import Reporter, Silence
from slurm_ray_flow.core.quantities import format_duration

QUIET_SECONDS = 0.2
"""A step that took less, and said nothing, is shown without its own line in a terminal's spinner."""


def terminal_reporter() -> Reporter:
    """What SRF_PROGRESS asks for: "off" is silent, "plain" plain lines; by default a terminal gets colours."""
    mode = os.environ.get("SRF_PROGRESS", "auto").lower()
    if mode in {"off", "0", "no", "false"}:
        return _LogOnly(sys.stdout)
    console = Console(stderr=True, highlight=False)
    if mode == "plain" or not console.is_terminal:
        return TerminalReporter(Console(stderr=True, highlight=False, force_terminal=False, width=200), live=False)
    return TerminalReporter(console, live=True)


class _LogOnly(Silence):
    """Shows what the function prints and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def log(self, data: bytes) -> None:
        write_bytes(self._stream, data)


def write_bytes(stream: TextIO, data: bytes) -> None:
    """Write to a text stream what the function wrote, byte for byte where the stream has bytes."""
    raw = getattr(stream, "buffer", None)
    stream.flush()
    if raw is None:
        stream.write(data.decode(errors="replace"))
    else:
        raw.write(data)
    stream.flush()


class TerminalReporter:
    """Writes steps to stderr and the function's own lines to stdout."""

    def __init__(self, console: Console, live: bool) -> None:
        self._console, self._live = console, live
        self._lock = threading.RLock()
        self._name, self._since = "", 0.0
        self._began = time.monotonic()
        self._status: Status | None = None

    def begin(self, run_id: str, function: str, cluster: str) -> None:
        with self._lock:
            self._began = time.monotonic()
            self._line(Text.assemble((function, "bold"), " on ", (cluster, "bold"), f"  run {run_id[:8]}"))

    def step(self, name: str) -> None:
        with self._lock:
            self._close_step("green", "✓")
            self._name, self._since = name, time.monotonic()
            if self._live:
                self._status = self._console.status(Text(name, "cyan"), spinner="dots")
                self._status.start()

    def say(self, text: str) -> None:
        with self._lock:
            self._line(Text(f"    {text}", "dim"))

    def log(self, data: bytes) -> None:
        with self._lock:
            if self._status is not None:
                self._status.stop()
            write_bytes(sys.stdout, data)
            if self._status is not None and data.endswith(b"\n"):
                self._status.start()

    def end(self, error: BaseException | None) -> None:
        with self._lock:
            self._close_step(*(("green", "✓") if error is None else ("red", "✗")))
            seconds = format_duration(time.monotonic() - self._began)
            if error is None:
                self._line(Text(f"done in {seconds}", "bold green"))
            else:
                self._line(Text(f"{type(error).__name__} after {seconds}", "bold red"))

    def _close_step(self, style: str, mark: str) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None
        if self._name:
            seconds = format_duration(time.monotonic() - self._since)
            self._line(Text.assemble((f"  {mark} ", style), f"{self._name:<22}", (seconds, "dim")))
        self._name = ""

    def _line(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True)
