"""The progress of a map in one line."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

from rich.text import Text

from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.text import plain
from slurm_ray_flow.interface.progress import is_repeated_warning, screen_to_use
from slurm_ray_flow.interface.screen import TIME, Screen

BAR = 24
MOST_FAILURES = 5
"""The most failures that are named; the others are counted."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""The bounds of the growing pause between two lines, where no line moves."""


class MapProgress:
    """The progress of a map's calls, shown while a caller waits for them.

    Args:
        function, cluster: names of the called function and of its cluster.
        count: the number of calls.
        max_parallel: the most calls at a time.
        map_id: the map's id.
    """

    def __init__(self, function: str, cluster: str, count: int, max_parallel: int, map_id: str) -> None:
        self._name, self._count = f"{function} on {cluster}", count
        width = f", {max_parallel} at a time" if max_parallel < count else ""
        title = Text(f"{self._name}: {count} calls{width} (map {map_id[:8]})", "bold")
        self._lock = threading.RLock()
        self._screen: Screen | None = None
        self._watchers, self._is_finished = 0, False
        self._began = time.monotonic()
        self._under_way, self._end_counts = 0, dict[str, int]()
        self._note, self._pending_lines = "", [title]
        self._failures = 0
        self._last_line_at, self._pause = self._began, FIRST_PAUSE

    @contextlib.contextmanager
    def displayed(self) -> Iterator[None]:
        """Show the progress while the block runs."""
        with self._lock:
            self._watchers += 1
            if self._watchers == 1:
                self._open()
        try:
            yield
        finally:
            with self._lock:
                self._watchers -= 1
                if not self._watchers and self._screen is not None:
                    self._screen.busy("", 0.0)

    def _open(self) -> None:
        if self._screen is None:
            self._screen = screen_to_use()
        if self._screen is None or self._is_finished:
            return
        for line in self._pending_lines:
            self._screen.line(line)
        self._pending_lines.clear()
        self._draw()

    def changed(self, under_way: int, ends: Mapping[str, int]) -> None:
        """Note how many calls are under way, and how many have ended as "done", "failed" or "cancelled"."""
        with self._lock:
            self._under_way, self._end_counts = under_way, dict(ends)
            if self._end_counts:
                self._note = ""
            self._draw()

    def note(self, text: str) -> None:
        """Note the present step of the calls."""
        with self._lock:
            self._note = f"  {plain(text)}" if text else ""
            self._draw()

    def tell(self, text: str) -> None:
        """Write a line that stays on the screen."""
        self._write_line(Text(f"  {plain(text)}", "yellow"))

    def warn(self, text: str) -> None:
        """Show a warning of a launch once, since all calls have the same ones."""
        if not is_repeated_warning(plain(text)):
            self.tell(text)

    def show_failure(self, index: int, value: str, error: BaseException) -> None:
        """Show a failed call."""
        with self._lock:
            self._failures += 1
            if self._failures > MOST_FAILURES:
                return
        message = plain(str(error)).partition("\n")[0]
        self._write_line(Text(f"  call {index} ({value}): {type(error).__name__}: {message}", "red"))

    def _write_line(self, line: Text) -> None:
        with self._lock:
            if self._watchers and self._screen is not None:
                self._screen.line(line)
            else:
                self._pending_lines.append(line)

    def _draw(self) -> None:
        if not self._watchers or self._screen is None or self._is_finished:
            return
        if self._ended_count() == self._count:
            self._end(self._screen)
        elif self._screen.live:
            self._screen.busy(f"{self._bar()} {TIME}  {self._counts()}{self._note}", self._began)
        elif time.monotonic() - self._last_line_at > self._pause:
            self._last_line_at, self._pause = time.monotonic(), min(self._pause * 1.5, LONGEST_PAUSE)
            self._screen.line(Text(f"  {self._counts()}{self._note}"))

    def _end(self, screen: Screen) -> None:
        self._is_finished = True
        screen.busy("", 0.0)
        if (unnamed := self._failures - MOST_FAILURES) > 0:
            screen.line(Text(f"  and {unnamed} more failed", "red"))
        took = format_duration(time.monotonic() - self._began)
        all_done = self._end_counts.get("done", 0) == self._count
        screen.line(Text(f"{self._name}: {self._counts()} in {took}", "bold green" if all_done else "bold red"))

    def _ended_count(self) -> int:
        return sum(self._end_counts.values())

    def _counts(self) -> str:
        waiting = self._count - self._ended_count() - self._under_way
        parts = [f"{self._end_counts.get('done', 0)} of {self._count} done"]
        parts += [f"{self._end_counts[how]} {how}" for how in ("failed", "cancelled") if self._end_counts.get(how)]
        parts += [f"{self._under_way} under way"] if self._under_way else []
        parts += [f"{waiting} waiting"] if waiting else []
        return ", ".join(parts)

    def _bar(self) -> str:
        length = BAR * self._ended_count() // self._count
        assert self._screen is not None
        full_mark, empty_mark = ("━", "╌") if self._screen.console.encoding.startswith("utf") else ("=", ".")
        return full_mark * length + empty_mark * (BAR - length)
