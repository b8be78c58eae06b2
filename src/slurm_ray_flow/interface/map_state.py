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
from slurm_ray_flow.interface.progress import is_repeated_warning, screen_to_use
from slurm_ray_flow.interface.screen import TIME, Screen
from slurm_ray_flow.remote.shared.protocol import parse_json

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclasses.dataclass(frozen=True)
class MapRecord:
    """One map. Its file has a line for the map, and one for each call that begins, or fails before it is a run.

    Attributes:
        map_id: the map's id.
        function, cluster: names of the called function and of its cluster.
        values: a short text of each call's arguments.
        pid, started, boot_id: the process that begins the calls; together they tell whether that process lives.
        created: seconds since 1970.
        runs: the runs of the calls that have begun, by the calls' indexes.
        failures: why a call never became a run, by its index.
        cancelled: the indexes of the calls among them that somebody cancelled.
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
    process = processes.this_process()
    record = MapRecord(
        map_id, function, cluster, tuple(values), process.pid, process.started, process.boot_id, created=time.time()
    )
    fields = dataclasses.asdict(record)
    _append(map_id, {name: fields[name] for name in fields if name not in {"runs", "failures", "cancelled"}})


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
        UnknownRunError: there is no such map, or there are several.
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


def ranges_text(indexes: Sequence[int]) -> str:
    """Numbers as text, with ranges: "0, 3 to 7, 9"."""
    ranges: list[list[int]] = []
    for index in sorted(indexes):
        if ranges and ranges[-1][-1] == index - 1:
            ranges[-1][1:] = [index]
        else:
            ranges.append([index])
    return ", ".join(str(bounds[0]) if len(bounds) == 1 else f"{bounds[0]} to {bounds[1]}" for bounds in ranges)


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
                if isinstance(entry := parse_json(line), dict):
                    yield entry


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
