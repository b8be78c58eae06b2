"""The record of a map at home: which of its calls have begun and ended, and which process begins them.

It is a file of lines that several processes append to, each line by one write. So their order decides: of two processes
that claim a map after the same third one, the first line wins; of a call that begins and the cancel of its map, too.
It imports no Prefect.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import reprlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from slurm_ray_flow.blocks import processes, store
from slurm_ray_flow.blocks.files import private_folder
from slurm_ray_flow.blocks.processes import Process
from slurm_ray_flow.blocks.run_facts import launch_alive
from slurm_ray_flow.core.errors import Cancelled, GridError, UnknownRunError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.shared.protocol import parse_json

DONE, FAILED, CANCELLED = "done", "failed", "cancelled"
"""How a call may end."""
END_SECONDS = 5.0
"""Seconds that a process of the engine has to end."""
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


@dataclasses.dataclass(frozen=True)
class MapRecord:
    """One map. Its file has a line for the map, and one for each thing that happens to its calls.

    Attributes:
        map_id: the map's id.
        function, cluster: names of the called function and of its cluster.
        values: a short text of each call's arguments.
        pid, started, boot_id: the process that begins the calls now; together they tell whether that process lives.
        created: seconds since 1970.
        is_engines: whether that process is one of the engine's; else it is the one that called `map`.
        is_cancelled: whether no more calls begin, since somebody cancelled all of them.
        runs: the runs of the calls that have begun, by the calls' indexes.
        failures: why a call never became a run, by its index.
        cancelled: the indexes of the calls among them that somebody cancelled.
        ends: how calls ended, by their indexes, where the process that begins them has seen it.
    """

    map_id: str
    function: str
    cluster: str
    values: tuple[str, ...]
    pid: int
    started: int | None
    boot_id: str | None
    created: float
    is_engines: bool = False
    is_cancelled: bool = False
    runs: dict[int, str] = dataclasses.field(default_factory=dict)
    failures: dict[int, str] = dataclasses.field(default_factory=dict)
    cancelled: set[int] = dataclasses.field(default_factory=set)
    ends: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def driver(self) -> dict[str, Any]:
        """The identity of the process that begins the calls."""
        return {"pid": self.pid, "started": self.started, "boot_id": self.boot_id}

    @property
    def alive(self) -> bool:
        """Whether the process that begins the calls lives, or may live on another machine with this home."""
        return processes.alive_as_noted(self.driver) is not False

    @property
    def is_kept(self) -> bool:
        """Whether another process may begin the calls when this one is gone."""
        return kept_file(self.map_id).exists()

    @property
    def goes_on(self) -> bool:
        """Whether calls that have not begun may begin yet."""
        return not self.is_cancelled and (self.alive or self.is_kept)

    def began(self, index: int) -> bool:
        """Whether a call has begun.

        A run that its cluster never had does not count, once the process that launched it is gone.
        """
        if index not in self.runs:
            return False
        run = store.known_record(self.runs[index])
        return run is None or not run.unsent or launch_alive(run) is not False

    def ended(self, index: int) -> str:
        """How a call has ended; "" where that is not known, or it has not."""
        if index in self.runs:
            return self.ends.get(index, "")
        if index in self.failures:
            return CANCELLED if index in self.cancelled else FAILED
        return CANCELLED if self.is_cancelled else ""

    def left(self) -> list[int]:
        """The indexes of the calls that have not begun, and may begin yet."""
        return [index for index in range(len(self.values)) if not (self.ended(index) or self.began(index))]


def record_map(map_id: str, function: str, cluster: str, values: Sequence[str]) -> None:
    """Write the file of a map of this process, before its first call begins."""
    process = processes.this_process()
    head = {"map_id": map_id, "function": function, "cluster": cluster, "values": tuple(values)}
    _append(map_id, {**head, **vars(process), "created": time.time()})


def claim_map(record: MapRecord) -> bool:
    """Become the process that begins the calls of a map; says whether this process is it now.

    Args:
        record: the map, as this process has read it; the process that it names is gone.
    """
    own = vars(processes.this_process())
    _append(record.map_id, {"driver": own, "after": record.driver}, sync=True)
    return find_map(record.map_id).driver == own


def note_begun(map_id: str, index: int, run_id: str) -> None:
    """Note the run of a call, before its cluster gets it.

    Raises:
        Cancelled: somebody has cancelled the call, or all calls, before.
    """
    _append(map_id, {"index": index, "run": run_id}, sync=True)  # a loss of power must not have it begin again
    record = find_map(map_id)
    if record.is_cancelled or index in record.cancelled:
        raise Cancelled("the call was cancelled before it had begun", where=f"call {index} of map {map_id[:8]}")


def note_failed(map_id: str, index: int, error: BaseException) -> None:
    """Note that a call failed before it was a run."""
    failure = f"{type(error).__name__}: {getattr(error, 'what', error)}"
    _append(map_id, {"index": index, "failure": failure, "cancelled": isinstance(error, Cancelled)})


def note_ended(map_id: str, index: int, how: str) -> None:
    """Note how the run of a call has ended."""
    _append(map_id, {"index": index, "end": how})


def note_cancelled(map_id: str) -> None:
    """Note that no more calls shall begin, whichever process begins them."""
    _append(map_id, {"cancel": True})


def find_map(map_id: str = "") -> MapRecord:
    """The map of this id, or of this start of an id; without one, the newest of this machine.

    Raises:
        UnknownRunError: there is no such map, or there are several.
    """
    exact = [_record_file(map_id)] if map_id and _record_file(map_id).exists() else None
    matching = [record for path in exact or _folder().glob(f"{map_id}*.jsonl") if (record := _read(path))]
    newest = sorted(matching, key=lambda record: record.created)[-1:] if not map_id else matching
    if len(newest) == 1:
        return newest[0]
    advice = "`Handles.map_id` is the whole id"
    if not matching:
        what = f"there is no map {map_id!r}" if map_id else "no map was started from this machine"
        if map_id and any((home() / "grid" / "campaigns").glob(f"{map_id}*")):
            what, advice = f"{map_id!r} is a campaign, and no map", f"write Campaign.attach({map_id!r})"
    else:
        what = f"{len(matching)} maps start with {map_id!r}"
    raise UnknownRunError(what, where=str(_folder()), advice=advice)


def change_time(map_id: str) -> float:
    """When something was noted of a map last, in seconds since 1970; 0 where its file is gone."""
    return store.changed(_record_file(map_id))


def remove_record(map_id: str) -> None:
    """Remove the file of a map."""
    _record_file(map_id).unlink(missing_ok=True)


# ---- what is kept of a map for another process


def kept_folder(map_id: str) -> Path:
    """The folder of what another process needs to begin a map's calls, as long as some have not begun."""
    return home() / "grid" / "maps" / map_id


def kept_file(map_id: str) -> Path:
    """The file that says how that process is to be started. It is written last: with it the map is kept."""
    return kept_folder(map_id) / "process.json"


def take_over_log(map_id: str) -> Path:
    """The log of that process, which goes with the record."""
    return _folder() / f"{map_id}.log"


def kept_maps() -> list[str]:
    """The ids of the maps whose calls another process may begin."""
    return sorted(path.parent.name for path in (home() / "grid" / "maps").glob("*/process.json"))


def drop_kept(map_id: str) -> None:
    """Remove what was kept of a map: nothing of it is left to begin."""
    kept_file(map_id).unlink(missing_ok=True)
    shutil.rmtree(kept_folder(map_id), ignore_errors=True)


def has_orphans() -> bool:
    """Whether a map waits for the engine, since the process that began its calls is gone."""
    for map_id in kept_maps():
        with contextlib.suppress(UnknownRunError):
            record = find_map(map_id)
            if not record.alive and record.left():
                return True
    return False


def end_engines_processes() -> None:
    """End the processes of the engine that begin calls; runs that have begun go on."""
    for map_id in kept_maps():
        with contextlib.suppress(UnknownRunError):
            record = find_map(map_id)
            if record.is_engines and record.started is not None and record.boot_id is not None:
                processes.end(Process(record.pid, record.started, record.boot_id), patience=END_SECONDS)


def start_process(map_id: str, environ: Mapping[str, str]) -> int:
    """Start the process that begins the calls of a map whose own process is gone; gives its pid.

    Args:
        map_id: the map.
        environ: the variables of the engine, with the passwords of clusters.

    Raises:
        GridError: it can't be started as the map's own process was.
    """
    try:
        kept = parse_json(kept_file(map_id).read_bytes())
        path = os.pathsep.join(filter(None, kept["path"]))
        command = [kept["executable"], "-m", "slurm_ray_flow.interface.take_over", map_id]
        folder = Path(kept["folder"])
        if not folder.is_dir():
            raise GridError("the folder in which the map was begun is gone", where=str(folder))
        env = {**environ, **kept["environ"], "PYTHONPATH": path}
        return processes.start(command, log=take_over_log(map_id), env=env, cwd=folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"what was kept of the map can't be read: {type(error).__name__}: {error}"
        raise GridError(what, where=str(kept_file(map_id))) from error


# ---- texts


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


# ---- the file


def _folder() -> Path:
    """The folder of maps, from which the daily clean-up removes files that are a month old."""
    return home() / "cache" / "maps"


def _record_file(map_id: str) -> Path:
    return _folder() / f"{map_id}.jsonl"


def _append(map_id: str, line: Mapping[str, Any], *, sync: bool = False) -> None:
    """Append a line; with `sync` it is on the disk when this returns.

    It begins with the end of a line, too: a process that was killed may have left half of one.
    """
    private_folder(_folder())
    data = b"\n" + json.dumps(line).encode() + b"\n"
    descriptor = os.open(_record_file(map_id), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(f"no room for the record of a map: {_record_file(map_id)}")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(path: Path) -> MapRecord | None:
    try:
        head, *rest = _lines(path)
        names = {"map_id", "function", "cluster", "pid", "started", "boot_id", "created"}
        known = {name: head[name] for name in names}
        record = read_record(MapRecord, {**known, "values": tuple(map(str, head["values"]))})
    except (ValueError, TypeError, KeyError):
        return None
    for line in rest:
        if "index" in line:
            _note_call(record, line)
        elif line.get("cancel") is True:
            record = dataclasses.replace(record, is_cancelled=True)
        elif "driver" in line and line.get("after") == record.driver:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                record = dataclasses.replace(record, **_identity(line["driver"]), is_engines=True)
    return record


def _note_call(record: MapRecord, line: Mapping[str, Any]) -> None:
    """Note what a line says of a call."""
    index = line["index"]
    if not isinstance(index, int) or not 0 <= index < len(record.values):
        return
    if "run" in line:
        record.runs[index] = str(line["run"])
    if "failure" in line:
        record.failures[index] = str(line["failure"])
        record.runs.pop(index, None)  # a cancel came while its beginning was noted
    if line.get("cancelled"):
        record.cancelled.add(index)
    if line.get("end") in (DONE, FAILED, CANCELLED):
        record.ends[index] = line["end"]


def _identity(noted: Any) -> dict[str, Any]:
    """The identity of a process as a line has it.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    return {"pid": int(noted["pid"]), "started": int(noted["started"]), "boot_id": str(noted["boot_id"])}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a map's file; a killed process may have left half of the last one."""
    with contextlib.suppress(OSError):
        for line in path.read_bytes().split(b"\n"):
            with contextlib.suppress(ValueError):
                if isinstance(entry := parse_json(line), dict):
                    yield entry
