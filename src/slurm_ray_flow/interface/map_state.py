"""The state of a map: its file at home, and its progress in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import reprlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from slurm_ray_flow.blocks import processes
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.core.errors import Cancelled, UnknownRunError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.core.text import plain
from slurm_ray_flow.interface.progress import screen_to_use, warned_before
from slurm_ray_flow.interface.screen import TIME, Screen
from slurm_ray_flow.remote.shared.protocol import parse_json

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclasses.dataclass(frozen=True)
class MapRecord:
    """One map. Its file has a line for the map, and one for each call that begins, or fails before it is a run.

    Attributes:
        map_id: names it.
        function, cluster: what is called, and where, for people.
        values: a short text of each call's arguments.
        pid, started, boot_id: the process that begins the calls; together they tell whether it lives.
        created: seconds since 1970.
        runs: the runs of the calls that have begun, by their place in the line.
        failures: why a call never became a run, by its place.
        cancelled: the places of those that never will because somebody cancelled them.
    """

    map_id: str
    function: str
    cluster: str
    values: tuple[str, ...]
    pid: int
    started: int | None
    boot_id: str | None
    created: float
    runs: dict[int, str] = dataclasses.field(default_factory=dict)
    failures: dict[int, str] = dataclasses.field(default_factory=dict)
    cancelled: set[int] = dataclasses.field(default_factory=set)

    @property
    def alive(self) -> bool:
        """Whether the process that begins the calls lives, or may live on another machine with this home."""
        return processes.alive_as_noted(dataclasses.asdict(self)) is not False


def record_map(map_id: str, function: str, cluster: str, values: Sequence[str]) -> None:
    """Write the file of a map of this process, before its first call begins."""
    this = processes.this_process()
    record = MapRecord(
        map_id, function, cluster, tuple(values), this.pid, this.started, this.boot_id, created=time.time()
    )
    known = dataclasses.asdict(record)
    _append(map_id, {name: known[name] for name in known if name not in {"runs", "failures", "cancelled"}})


def note_begun(map_id: str, index: int, run_id: str) -> None:
    """Note the run of a call."""
    _append(map_id, {"index": index, "run": run_id})


def note_failed(map_id: str, index: int, error: BaseException) -> None:
    """Note that a call failed before it was a run."""
    failure = f"{type(error).__name__}: {getattr(error, 'what', error)}"
    _append(map_id, {"index": index, "failure": failure, "cancelled": isinstance(error, Cancelled)})


def find_map(map_id: str = "") -> MapRecord:
    """The map of this id, or of this start of an id; without one, the newest of this machine.

    Raises:
        UnknownRunError: there is none, or there are several.
    """
    matching = [record for path in _folder().glob(f"{map_id}*.jsonl") if (record := _read(path))]
    newest = sorted(matching, key=lambda record: record.created)[-1:] if not map_id else matching
    if len(newest) == 1:
        return newest[0]
    if not matching:
        what = f"there is no map {map_id!r}" if map_id else "no map was started from this machine"
    else:
        what = f"{len(matching)} maps start with {map_id!r}"
    raise UnknownRunError(what, where=str(_folder()), advice="`Handles.map_id` is the whole id")


def arguments_text(arguments: Sequence[Any]) -> str:
    """A short text of one call's arguments."""
    return ", ".join(_short.repr(value) for value in arguments)


def places(indexes: Sequence[int]) -> str:
    """A short text of numbers: "0, 3 to 7, 9"."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][-1] == index - 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[1]}" for part in parts)


def _folder() -> Path:
    """The folder of maps, from which the daily clean-up removes files that are a month old."""
    return home() / "cache" / "maps"


def _append(map_id: str, line: Mapping[str, Any]) -> None:
    path = private_folder(_folder()) / f"{map_id}.jsonl"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, json.dumps(line).encode() + b"\n")
    finally:
        os.close(descriptor)


def _read(path: Path) -> MapRecord | None:
    try:
        head, *rest = _lines(path)
        record = read_record(MapRecord, {**head, "values": tuple(map(str, head["values"]))})
    except (ValueError, TypeError, KeyError):
        return None
    calls = [line for line in rest if isinstance(line.get("index"), int)]
    record.runs.update({line["index"]: str(line["run"]) for line in calls if "run" in line})
    record.failures.update({line["index"]: str(line["failure"]) for line in calls if "failure" in line})
    record.cancelled.update(line["index"] for line in calls if line.get("cancelled"))
    return record


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a map's file; a killed process may have left half of the last one."""
    with contextlib.suppress(OSError):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                if isinstance(said := parse_json(line), dict):
                    yield said


BAR = 24
MOST_FAILURES = 5
"""The most failures that are named; the others are counted."""
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""The bounds of the growing pause between two lines, where no line moves."""


class MapProgress:
    """The progress of a map's calls, shown while a caller waits for them.

    Args:
        function, cluster: what is called, and where.
        count: how many calls there are.
        max_parallel: how many of them at a time.
        map_id: the map's id.
    """

    def __init__(self, function: str, cluster: str, count: int, max_parallel: int, map_id: str) -> None:
        self._name, self._count = f"{function} on {cluster}", count
        width = f", {max_parallel} at a time" if max_parallel < count else ""
        title = Text(f"{self._name}: {count} calls{width} (map {map_id[:8]})", "bold")
        self._lock = threading.RLock()
        self._screen: Screen | None = None
        self._watchers, self._over = 0, False
        self._began = time.monotonic()
        self._under_way, self._ends = 0, dict[str, int]()
        self._note, self._later = "", [title]
        self._failures = 0
        self._said, self._pause = self._began, FIRST_PAUSE

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
        if self._screen is None or self._over:
            return
        for line in self._later:
            self._screen.line(line)
        self._later.clear()
        self._draw()

    def changed(self, under_way: int, ends: Mapping[str, int]) -> None:
        """Note how many calls are under way, and how many have ended as "done", "failed" or "cancelled"."""
        with self._lock:
            self._under_way, self._ends = under_way, dict(ends)
            if self._ends:
                self._note = ""
            self._draw()

    def note(self, text: str) -> None:
        """Note the present step of the calls."""
        with self._lock:
            self._note = f"  {plain(text)}" if text else ""
            self._draw()

    def tell(self, text: str) -> None:
        """Write a line that stays on the screen."""
        self._tell(Text(f"  {plain(text)}", "yellow"))

    def warn(self, text: str) -> None:
        """Show a warning of a launch once, since all calls have the same ones."""
        if not warned_before(plain(text)):
            self.tell(text)

    def tell_failure(self, index: int, value: str, error: BaseException) -> None:
        """Show a failed call."""
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
        if not self._watchers or self._screen is None or self._over:
            return
        if self._ended() == self._count:
            self._end(self._screen)
        elif self._screen.live:
            self._screen.busy(f"{self._bar()} {TIME}  {self._counts()}{self._note}", self._began)
        elif time.monotonic() - self._said > self._pause:
            self._said, self._pause = time.monotonic(), min(self._pause * 1.5, LONGEST_PAUSE)
            self._screen.line(Text(f"  {self._counts()}{self._note}"))

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

    def _bar(self) -> str:
        full = BAR * self._ended() // self._count
        assert self._screen is not None
        one, other = ("━", "╌") if self._screen.console.encoding.startswith("utf") else ("=", ".")
        return one * full + other * (BAR - full)
