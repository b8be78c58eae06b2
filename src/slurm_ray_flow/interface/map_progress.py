"""How far a map is: one line for all of its calls."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping

from rich.text import Text

from slurm_ray_flow.core.plain import plain
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.interface.progress import screen_to_use, told_already
from slurm_ray_flow.interface.screen import TIME, Screen

BAR = 24
MOST_FAILURES = 5
"""So many failures are named; the others are counted."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Where no line moves, a line is written when something has changed, after pauses that grow between these."""


class MapProgress:
    """Shows the calls of a map, while somebody waits for them.

    Args:
        function, cluster: what is called, and where.
        count: how many calls there are.
        max_parallel: how many of them at a time.
        map_id: the map's id.
    """

    def __init__(self, function: str, cluster: str, count: int, max_parallel: int, map_id: str) -> None:
        self._name, self._count = f"{function} on {cluster}", count
        width = f", {max_parallel} at a time" if max_parallel < count else ""
        self._title = f"{self._name}: {count} calls{width} (map {map_id[:8]})"
        self._lock = threading.RLock()
        self._screen: Screen | None = None
        self._watchers, self._titled, self._over = 0, False, False
        self._began = time.monotonic()
        self._under_way, self._ends = 0, dict[str, int]()
        self._note, self._later = "", list[Text]()
        self._failures = 0
        self._said, self._pause = self._began, FIRST_PAUSE

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """While the block runs, how far the calls are is shown: nothing is written when nobody waits."""
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
        if self._screen is None or self._over:
            return
        if not self._titled:
            self._titled = True
            self._screen.line(Text(self._title, "bold"))
        for line in self._later:
            self._screen.line(line)
        self._later.clear()
        self._draw()

    def changed(self, under_way: int, ends: Mapping[str, int]) -> None:
        """So many calls are under way now, and so many have ended: "done", "failed" or "cancelled"."""
        with self._lock:
            self._under_way, self._ends = under_way, dict(ends)
            if self._ends:
                self._note = ""
            if self._watchers:
                self._draw()

    def note(self, text: str) -> None:
        """What the calls are at now."""
        with self._lock:
            self._note = plain(text)
            if self._watchers:
                self._draw()

    def tell(self, text: str) -> None:
        """Something that stays on the screen."""
        self._tell(Text(f"  {plain(text)}", "yellow"))

    def warn(self, text: str) -> None:
        """A warning of a launch; all calls have the same ones."""
        if not told_already(plain(text)):
            self.tell(text)

    def tell_failure(self, index: int, value: str, error: BaseException) -> None:
        """A call has failed."""
        with self._lock:
            self._failures += 1
            if self._failures > MOST_FAILURES:
                return
        said = plain(str(error)).partition("\n")[0]
        self._tell(Text(f"  call {index} ({value}): {type(error).__name__}: {said}", "red"))

    def _tell(self, line: Text) -> None:
        with self._lock:
            if self._watchers and self._screen is not None:
                self._screen.line(line)
            else:
                self._later.append(line)

    def _draw(self) -> None:
        if self._screen is None or self._over:
            return
        if self._ended() == self._count:
            self._end(self._screen)
        elif self._screen.live:
            self._screen.busy(f"{self._bar()} {TIME}  {self._counts()}{self._noted()}", self._began)
        elif time.monotonic() - self._said > self._pause:
            self._said, self._pause = time.monotonic(), min(self._pause * 1.5, LONGEST_PAUSE)
            self._screen.line(Text(f"  {self._counts()}{self._noted()}"))

    def _end(self, screen: Screen) -> None:
        self._over = True
        screen.busy("", 0.0)
        if (more := self._failures - MOST_FAILURES) > 0:
            screen.line(Text(f"  and {more} more failed", "red"))
        took = format_duration(time.monotonic() - self._began)
        all_good = self._ends.get("done", 0) == self._count
        screen.line(Text(f"{self._name}: {self._counts()} in {took}", "bold green" if all_good else "bold red"))

    def _ended(self) -> int:
        return sum(self._ends.values())

    def _counts(self) -> str:
        waiting = self._count - self._ended() - self._under_way
        shown = [f"{self._ends.get('done', 0)} of {self._count} done"]
        shown += [f"{self._ends[how]} {how}" for how in ("failed", "cancelled") if self._ends.get(how)]
        shown += [f"{self._under_way} under way"] if self._under_way else []
        shown += [f"{waiting} waiting"] if waiting else []
        return ", ".join(shown)

    def _noted(self) -> str:
        return f"  {self._note}" if self._note else ""

    def _bar(self) -> str:
        full = BAR * self._ended() // self._count
        assert self._screen is not None
        one, other = ("━", "╌") if self._screen.console.encoding.startswith("utf") else ("=", ".")
        return one * full + other * (BAR - full)
