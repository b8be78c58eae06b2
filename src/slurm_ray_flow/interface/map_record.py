"""What home remembers of a map: which of its calls have begun, and as which runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import reprlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks import processes
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.core.errors import Cancelled, UnknownRunError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.protocol import parse_json

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclasses.dataclass(frozen=True)
class MapRecord:
    """One map. Its file has a line for the whole, and one for each call that begins or fails before it has a run.

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
        """Whether the process that begins the calls runs, or may do so on another machine with this home."""
        return processes.alive_as_noted(dataclasses.asdict(self)) is not False


def record_map(map_id: str, function: str, cluster: str, values: Sequence[str]) -> None:
    """Remember a map of this process, before any of its calls begins."""
    this = processes.this_process()
    record = MapRecord(
        map_id, function, cluster, tuple(values), this.pid, this.started, this.boot_id, created=time.time()
    )
    known = dataclasses.asdict(record)
    _append(map_id, {name: known[name] for name in known if name not in {"runs", "failures", "cancelled"}})


def note_begun(map_id: str, index: int, run_id: str) -> None:
    """Remember which run a call is."""
    _append(map_id, {"index": index, "run": run_id})


def note_failed(map_id: str, index: int, error: BaseException) -> None:
    """Remember that a call never became a run."""
    failure = f"{type(error).__name__}: {getattr(error, 'what', error)}"
    _append(map_id, {"index": index, "failure": failure, "cancelled": isinstance(error, Cancelled)})


def find_map(map_id: str = "") -> MapRecord:
    """The map whose id is this, or starts so; without one, the newest of this machine.

    Raises:
        UnknownRunError: there is none, or there are several.
    """
    found = [record for path in _folder().glob(f"{map_id}*.jsonl") if (record := _read(path))]
    newest = sorted(found, key=lambda record: record.created)[-1:] if not map_id else found
    if len(newest) == 1:
        return newest[0]
    if not found:
        what = f"there is no map {map_id!r}" if map_id else "no map was started from this machine"
    else:
        what = f"{len(found)} maps start with {map_id!r}"
    raise UnknownRunError(what, where=str(_folder()), advice="`Handles.map_id` is the whole id")


def text_of(arguments: Sequence[Any]) -> str:
    """The arguments of one call in a few letters."""
    return ", ".join(_short.repr(value) for value in arguments)


def places(indexes: Sequence[int]) -> str:
    """Numbers in a few letters: "0, 3 to 7, 9"."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][-1] == index - 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]} to {part[1]}" for part in parts)


def _folder() -> Path:
    """Where the daily clean-up removes what nobody has touched for a month."""
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
    """The whole lines; a process that was killed may have left half of the last one."""
    with contextlib.suppress(OSError):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                if isinstance(said := parse_json(line), dict):
                    yield said
