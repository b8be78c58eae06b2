"""The progress of a launch in the terminal: seven steps with their times, then the log."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.style import Style
from rich.text import Text

from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.progress import Reporter, SilentReporter
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.text import plain
from slurm_ray_flow.core.trace import tracing
from slurm_ray_flow.interface.notebook import NotebookScreen, in_notebook
from slurm_ray_flow.interface.screen import TIME, Screen, write_bytes

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster


class LogLines:
    """A log file, read line by line.

    Attributes:
        path: the file.
    """

    def __init__(self, cluster: Cluster, path: PurePosixPath) -> None:
        self._cluster, self.path = cluster, path
        self._offset, self._rest = 0, b""

    def new(self) -> Iterator[str]:
        """The complete lines since the last call."""
        while data := self._cluster.read(self.path, self._offset):
            self._offset += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from (line.decode(errors="replace") for line in lines)

    def last(self) -> Iterator[str]:
        """A last line without an end."""
        if self._rest:
            yield self._rest.decode(errors="replace")


MOST_WARNINGS = 5
"""The most warnings of one step that are shown; the run's log in Prefect has all."""
SLOW_SECONDS = 2.0
"""Where no line moves, a step that takes so long gets a line for each thing that it says, and what it has said for so
long gets one at once; else the last is the step's own."""
NOTE_COLUMN = 36

_warned: set[str] = set()
"""The warnings that were shown: a function that is called in a loop warns once."""
_screens: dict[tuple[int, bool], Screen] = {}


def warned_before(warning: str) -> bool:
    """Whether this process has shown a warning before."""
    known = warning in _warned
    _warned.add(warning)
    return known


def terminal_reporter() -> Reporter:
    """The reporter of SRF_PROGRESS: "off" is silent, "plain" plain lines; by default a terminal gets colours."""
    screen = screen_to_use()
    return _LogOnly(sys.stdout) if screen is None else TerminalReporter(screen)


def screen_to_use() -> Screen | None:
    """The screen that shows progress; None for none."""
    mode = os.environ.get("SRF_PROGRESS", "auto").lower()
    if mode in {"off", "0", "no", "false"}:
        return None
    if mode != "plain" and in_notebook():
        return NotebookScreen()
    console = Console(stderr=True, highlight=False, force_jupyter=False)
    live = mode != "plain" and not tracing() and console.is_terminal and not console.is_dumb_terminal
    return _screen(live)


def _screen(live: bool) -> Screen:
    """The screen that all launches of this process share."""
    key = (id(sys.stderr), live)
    if key not in _screens:
        _screens.clear()
        plain = Console(file=sys.stderr, highlight=False, force_terminal=False, force_jupyter=False, width=200)
        colours = Console(file=sys.stderr, highlight=False, force_jupyter=False)
        _screens[key] = Screen(colours if live else plain, live)
    return _screens[key]


class _LogOnly(SilentReporter):
    """A reporter that shows the function's output alone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def log(self, data: bytes) -> None:
        write_bytes(self._stream, data)


class TerminalReporter(Reporter):
    """A reporter with a line for each ended step; on a terminal, the present step is the moving bottom line."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lock = threading.RLock()
        self._name, self._since = "", 0.0
        self._note, self._warnings = "", list[str]()
        self._shown = 0
        self._later: threading.Timer | None = None
        self._began, self._run_id = time.monotonic(), ""
        utf8 = screen.console.encoding.startswith("utf")
        self._good, self._bad, self._again = ("✓", "✗", "↻") if utf8 else ("+", "x", "~")

    def begin(self, run_id: str, function: str, cluster: str, url: str) -> None:
        with self._lock:
            self._began, self._run_id = time.monotonic(), run_id[:8]
            self._screen.launches += 1
            self._screen.line(Text.assemble((function, "bold"), " on ", (cluster, "bold"), f", run {self._run_id}"))
            if url:
                style = Style(dim=True, link=url if self._screen.links else None)
                self._screen.line(Text.assemble("  ", (url, style), no_wrap=True, overflow="fold"))

    def step(self, name: str) -> None:
        with self._lock:
            self._close_step("yellow", self._again) if name == self._name else self._close_step("green", self._good)
            self._name, self._since = name, time.monotonic()
            self._note, self._warnings, self._shown = "", [], 0
            self._show()

    def fail(self) -> None:
        with self._lock:
            self._close_step("red", self._bad)

    def say(self, text: str) -> None:
        text = plain(text)
        with self._lock:
            if not self._name:
                self._screen.line(Text(text, "dim"))
                return
            if time.monotonic() - self._since > SLOW_SECONDS:
                self._tell_note(self._note)
            self._note = text
            self._show()
            if not self._screen.live:
                self._tell_later(text)

    def _tell_later(self, note: str) -> None:
        """Show a step's text while the step waits, where no line moves."""
        self._forget_later()
        self._later = _started(threading.Timer(SLOW_SECONDS, self._tell_note, [note]))

    def _forget_later(self) -> None:
        if self._later:
            self._later.cancel()

    def _tell_note(self, note: str) -> None:
        with self._lock:
            if note and note == self._note and not self._screen.live:
                self._below(note, "dim")
                self._note = ""

    def warn(self, text: str) -> None:
        text = plain(text)
        with self._lock:
            if warned_before(text):
                return
            if not self._name:  # before the first step
                self._screen.line(Text(text, "yellow"))
                return
            self._warnings.append(text)
            wait = SLOW_SECONDS - (time.monotonic() - self._since)
            if wait > 0:
                _started(threading.Timer(wait, self._warn_of, [self._warnings]))
            else:
                self._warn_of(self._warnings)

    def _warn_of(self, warnings: list[str]) -> None:
        """Show new warnings of a step: of a long step at once, of a short one at its end."""
        with self._lock:
            if warnings is self._warnings:
                for warning in warnings[self._shown : MOST_WARNINGS]:
                    self._below(warning, "yellow")
                self._shown = len(warnings)

    def log(self, data: bytes) -> None:
        self._screen.log(data)

    def again(self, error: BaseException, text: str) -> None:
        with self._lock:
            self._end_step(error)
            self._screen.line(Text(f"{type(error).__name__}: {text}", "yellow"))

    def end(self, error: BaseException | None) -> None:
        with self._lock:
            self._end_step(error)
            seconds = format_duration(time.monotonic() - self._began)
            whose = self._whose()
            self._screen.launches -= 1
            if error is None:
                self._screen.line(Text(f"done in {seconds}{whose}", "bold green"))
            else:
                self._screen.line(Text(f"{type(error).__name__} after {seconds}{whose}", "bold red"))

    def _end_step(self, error: BaseException | None) -> None:
        """Write the line of the last step; it has succeeded where it brought the function's own exception home."""
        own = self._name in {"fetch_outcome", "fetch_outputs"} and not isinstance(error, SlurmRayFlowError)
        self._close_step(*(("green", self._good) if error is None or own else ("red", self._bad)))

    def _whose(self) -> str:
        return f"  (run {self._run_id})" if self._screen.launches > 1 else ""

    def _show(self) -> None:
        self._screen.busy(f"{self._name:<20} {TIME}  {self._note}", self._since)

    def _close_step(self, style: str, mark: str) -> None:
        self._forget_later()
        if not self._name:
            return
        self._screen.busy("", 0.0)
        seconds = format_duration(time.monotonic() - self._since)
        line = Text.assemble((f"  {mark} ", style), f"{self._name:<20} ", (f"{seconds:>8}", "dim"))
        note = self._note + self._whose()
        fits = NOTE_COLUMN + len(note) <= self._screen.console.width
        if note and fits:
            line.append(f"  {note}", "dim")
        self._screen.line(line)
        if note and not fits:
            self._below(note, "dim")
        self._warn_of(self._warnings)
        if (more := len(self._warnings) - MOST_WARNINGS) > 0:
            self._below(f"and {more} more: the run's log in the Prefect UI has all", "yellow")
        self._name = ""

    def _below(self, text: str, style: str) -> None:
        if self._screen.live:
            self._screen.line(Padding(Text(text, style), (0, 0, 0, 6)))
        else:
            self._screen.line(Text(f"      {text}", style))


def _started(timer: threading.Timer) -> threading.Timer:
    timer.daemon = True
    timer.start()
    return timer
