"""The progress of a launch in the terminal: seven steps with their times, then the log."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time

from rich.console import Console
from rich.padding import Padding
from rich.style import Style
from rich.text import Text

from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.text import plain
from slurm_ray_flow.core.trace import tracing
from slurm_ray_flow.interface.notebook import NotebookScreen, in_notebook
from slurm_ray_flow.interface.screen import TIME, Screen, write_bytes

MOST_WARNINGS = 5
"""The most warnings of one step that are shown; the run's log in Prefect has all."""
SLOW_SECONDS = 2.0
"""Seconds after which, on a screen without a moving line, the notes of a step and a lasting note get lines of their
own; the last note of a shorter step stands in the step's line."""
NOTE_COLUMN = 36

_warned: set[str] = set()
"""The warnings that were shown: a function that is called in a loop warns once."""
_screens: dict[tuple[int, bool], Screen] = {}


def is_repeated_warning(warning: str) -> bool:
    """Whether this process has shown a warning before."""
    is_repeated = warning in _warned
    _warned.add(warning)
    return is_repeated


def terminal_display() -> events.Subscriber:
    """The display that SRF_PROGRESS names: "off" is silent, "plain" plain lines; by default a terminal gets colours."""
    screen = screen_to_use()
    return _show_output if screen is None else TerminalDisplay(screen).receive


def _show_output(event: events.LaunchEvent) -> None:
    """Show the function's output alone."""
    if isinstance(event, events.Output):
        write_bytes(sys.stdout, event.data)


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


@dataclasses.dataclass(eq=False)
class _Step:
    """A step: its start, its last note that has no line of its own, and its warnings, of which `shown` are shown."""

    name: str
    since: float = dataclasses.field(default_factory=time.monotonic)
    note: str = ""
    warnings: list[str] = dataclasses.field(default_factory=list)
    shown: int = 0

    @property
    def seconds(self) -> float:
        """The time since its start."""
        return time.monotonic() - self.since


class TerminalDisplay:
    """A line for each ended step of a launch; on a terminal, the present step is the moving bottom line."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._lock = threading.RLock()
        self._step: _Step | None = None
        self._note_timer: threading.Timer | None = None
        self._began, self._run_id = time.monotonic(), ""
        utf8 = screen.console.encoding.startswith("utf")
        self._good, self._bad, self._repeated = ("✓", "✗", "↻") if utf8 else ("+", "x", "~")

    def receive(self, event: events.LaunchEvent) -> None:
        """Show an event of the launch."""
        if isinstance(event, events.Output):
            if event.data:
                self._screen.log(event.data)
            return
        with self._lock:
            self._show(event)

    def _show(self, event: events.LaunchEvent) -> None:
        match event:
            case events.RunBegan():
                self._begin(event)
            case events.StepStarted():
                self._start_step(event.name)
            case events.StepFailed():
                self._close_step("red", self._bad)
            case events.Note() | events.Waiting() | events.ResourcesUsed():
                self._note(plain(event.text))
            case events.Warned():
                self._warn(plain(event.text))
            case events.TryFailed():
                self._end_last_step(event.error)
                self._screen.line(Text(event.text, "yellow"))
            case events.RunEnded():
                self._end(event.error)

    def _begin(self, run: events.RunBegan) -> None:
        self._began, self._run_id = time.monotonic(), run.run_id[:8]
        self._screen.launches += 1
        self._screen.line(Text.assemble((run.function, "bold"), " on ", (run.cluster, "bold"), f", run {self._run_id}"))
        if run.url:
            style = Style(dim=True, link=run.url if self._screen.links else None)
            self._screen.line(Text.assemble("  ", (run.url, style), no_wrap=True, overflow="fold"))

    def _end(self, error: BaseException | None) -> None:
        self._end_last_step(error)
        took_text = f"{format_duration(time.monotonic() - self._began)}{self._run_suffix()}"
        self._screen.launches -= 1
        if error is None:
            self._screen.line(Text(f"done in {took_text}", "bold green"))
        else:
            self._screen.line(Text(f"{type(error).__name__} after {took_text}", "bold red"))

    def _start_step(self, name: str) -> None:
        if self._step and self._step.name == name:
            self._close_step("yellow", self._repeated)
        else:
            self._close_step("green", self._good)
        self._step = _Step(name)
        self._move_bottom_line(self._step)

    def _note(self, text: str) -> None:
        step = self._step
        if step is None:
            self._screen.line(Text(text, "dim"))
            return
        if step.seconds > SLOW_SECONDS:
            self._show_note(step, step.note)
        step.note = text
        self._move_bottom_line(step)
        if not self._screen.live:
            self._cancel_note_timer()
            self._note_timer = _start_timer(threading.Timer(SLOW_SECONDS, self._show_note, [step, text]))

    def _show_note(self, step: _Step, note: str) -> None:
        """Write a note as a line of its own while its step goes on, on a screen without a moving line."""
        with self._lock:
            if note and step is self._step and note == step.note and not self._screen.live:
                self._line_below(note, "dim")
                step.note = ""

    def _cancel_note_timer(self) -> None:
        if self._note_timer:
            self._note_timer.cancel()

    def _warn(self, text: str) -> None:
        step = self._step
        if is_repeated_warning(text):
            return
        if step is None:
            self._screen.line(Text(text, "yellow"))
            return
        step.warnings.append(text)
        if step.seconds < SLOW_SECONDS:
            _start_timer(threading.Timer(SLOW_SECONDS - step.seconds, self._show_warnings, [step]))
        else:
            self._show_warnings(step)

    def _show_warnings(self, step: _Step) -> None:
        """Show new warnings of a step: of a long step at once, of a short one at its end."""
        with self._lock:
            if step is self._step:
                for warning in step.warnings[step.shown : MOST_WARNINGS]:
                    self._line_below(warning, "yellow")
                step.shown = len(step.warnings)

    def _end_last_step(self, error: BaseException | None) -> None:
        """Write the line of the last step; a fetch of the function's own exception counts as a success."""
        fetches = self._step is not None and self._step.name in {"fetch_outcome", "fetch_outputs"}
        function_raised = fetches and not isinstance(error, SlurmRayFlowError)
        self._close_step(*(("green", self._good) if error is None or function_raised else ("red", self._bad)))

    def _close_step(self, style: str, mark: str) -> None:
        self._cancel_note_timer()
        step = self._step
        if step is None:
            return
        self._screen.busy("", 0.0)
        line = Text.assemble((f"  {mark} ", style), f"{step.name:<20} ", (f"{format_duration(step.seconds):>8}", "dim"))
        note = step.note + self._run_suffix()
        fits = NOTE_COLUMN + len(note) <= self._screen.console.width
        if note and fits:
            line.append(f"  {note}", "dim")
        self._screen.line(line)
        if note and not fits:
            self._line_below(note, "dim")
        self._show_warnings(step)
        if (more := len(step.warnings) - MOST_WARNINGS) > 0:
            self._line_below(f"and {more} more: the run's log in the Prefect UI has all", "yellow")
        self._step = None

    def _run_suffix(self) -> str:
        """The run's id, where several launches are on one screen."""
        return f"  (run {self._run_id})" if self._screen.launches > 1 else ""

    def _move_bottom_line(self, step: _Step) -> None:
        self._screen.busy(f"{step.name:<20} {TIME}  {step.note}", step.since)

    def _line_below(self, text: str, style: str) -> None:
        """Write a line below that of a step."""
        if self._screen.live:
            self._screen.line(Padding(Text(text, style), (0, 0, 0, 6)))
        else:
            self._screen.line(Text(f"      {text}", style))


def _start_timer(timer: threading.Timer) -> threading.Timer:
    timer.daemon = True
    timer.start()
    return timer
