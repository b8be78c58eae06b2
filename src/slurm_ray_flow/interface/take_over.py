"""The process that begins the calls of a map which had not begun when the map's own process was gone.

    python -m slurm_ray_flow.interface.take_over MAP

The engine starts it (`grid/maps.py`), as the map's own process was started. It ends when all calls have ended, or with
the engine; the next engine starts another one then.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.map_record import (
    CANCELLED,
    DONE,
    FAILED,
    MapRecord,
    claim_map,
    find_map,
    kept_file,
    kept_folder,
    note_ended,
    note_failed,
)
from slurm_ray_flow.core.errors import Cancelled, PayloadError, RunError, SlurmRayFlowError
from slurm_ray_flow.core.run import RunState
from slurm_ray_flow.interface.calls import Arguments, MapCalls
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.launch_flow import flow_of_pickle
from slurm_ray_flow.interface.session import KeptFunction, Launching
from slurm_ray_flow.remote.shared.protocol import parse_json

SHORTEST_WAIT, LONGEST_WAIT = 0.5, 5.0
"""Seconds between two looks at runs that another process has launched."""
HOW = {RunState.SUCCEEDED: DONE, RunState.CANCELLED: CANCELLED}
log = logging.getLogger("slurm_ray_flow.grid")


class TakenOverCalls(MapCalls):
    """The calls of a map that another process has begun.

    Args:
        record: the map.
    """

    def __init__(self, record: MapRecord) -> None:
        kept = pickle.loads((kept_folder(record.map_id) / "function").read_bytes())
        flow = flow_of_pickle(kept["flow"])
        flow.travels_by_name = kept["travels_by_name"]
        unknown: Sequence[Arguments] = [((), {})] * len(record.values)
        super().__init__(flow, unknown, kept["max_parallel"], record.map_id)
        self._function = KeptFunction(kept["digest"], kept["target"])
        self._stored: list[tuple[str, tuple[str, ...]]] = kept["arguments"]
        self._prepared, self._prepared_for = _prepared(record.map_id, self._stored)
        self._shared_parts_ready = bool(self._prepared)
        self._take_over(record)

    def _take_over(self, record: MapRecord) -> None:
        """Note the calls that have ended, and those that are under way."""
        for item in self.items:
            if how := record.ended(item.index):
                self.settle_earlier(item.index, how)
            elif record.began(item.index):
                item.begin(record.runs[item.index])
                self._under_way.add(item)

    def settle_earlier(self, index: int, how: str) -> None:
        """Note the end of a call that another process had begun."""
        errors = {CANCELLED: Cancelled("it was cancelled"), FAILED: RunError("it has failed")}
        with self._change:
            self._under_way.discard(self.items[index])
            self._settle(self.items[index], error=errors.get(how))

    def _arguments_of(self, index: int, current: Launching) -> Arguments:
        digest, modules = self._stored[index]
        if not digest:
            what = f"the arguments of call {index} could not be stored, and their process is gone"
            raise PayloadError(what, advice="start the function again with this value")
        target = self._function.target
        target = dataclasses.replace(target, imported=tuple(sorted({*target.imported, *modules})))
        prepared = self._prepared if modules == self._prepared_for else ""
        current.kept = KeptFunction(self._function.digest, target, prepared)
        found = store.get(digest)
        return tuple(found["args"]), found["kwargs"]


def _prepared(map_id: str, stored: Sequence[tuple[str, tuple[str, ...]]]) -> tuple[str, tuple[str, ...]]:
    """What was prepared for a call of the map, and the modules of its arguments; "" where nothing was."""
    try:
        found = parse_json((kept_folder(map_id) / "prepared").read_bytes())
        return str(found["prepared"]), stored[found["index"]][1]
    except FileNotFoundError:
        return "", ()


def follow(record: MapRecord, ended: Callable[[int, str], None]) -> None:
    """Wait for the ends of the runs that another process has launched, and end them where the map is cancelled."""
    waiting = {index: run for index, run in record.runs.items() if record.began(index) and not record.ended(index)}
    wait = SHORTEST_WAIT
    while waiting:
        is_cancelled = find_map(record.map_id).is_cancelled
        for index, run_id in list(waiting.items()):
            how = _end_of(Handle(run_id), is_cancelled)
            if how:
                del waiting[index]
                note_ended(record.map_id, index, how)
                ended(index, how)
        time.sleep(wait)
        wait = min(1.2 * wait, LONGEST_WAIT)


def _end_of(handle: Handle[Any], is_cancelled: bool) -> str:
    """How a run has ended; "" where it has not, or its cluster does not say."""
    try:
        if is_cancelled:
            handle.cancel()
        state = handle.status()
        if state is RunState.LOST and store.find_record(handle.run_id).is_new(time.time()):
            return ""  # its head may start yet
    except SlurmRayFlowError as error:
        log.warning("run %s: %s", handle.run_id[:8], error.what)
        return ""
    return HOW.get(state, FAILED) if state.final else ""


def main() -> int:
    """Begin what has not begun, and wait until all has ended."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, force=True)
    record = find_map(sys.argv[1])
    if record.alive or not claim_map(record):
        log.info("another process begins the calls of map %s", record.map_id[:8])
        return 0
    record = find_map(record.map_id)
    log.info("begins %s calls of map %s", len(record.left()), record.map_id[:8])
    _become_like_the_first(record)
    try:
        calls = TakenOverCalls(record)
    except Exception as error:  # of the user's modules, say
        log.exception("the map can't be begun here")
        for index in record.left():
            note_failed(record.map_id, index, error)
        follow(record, lambda _index, _how: None)
        return 1
    threading.Thread(target=follow, args=(record, calls.settle_earlier), daemon=True).start()
    calls.begin()
    for item in calls.items:
        item.future.exception()
    return 0


def _become_like_the_first(record: MapRecord) -> None:
    """Have this process find modules as the map's own process did."""
    kept = parse_json(kept_file(record.map_id).read_bytes())
    sys.path[:], sys.argv[:] = kept["path"], kept["argv"]
    sys.setrecursionlimit(kept["recursion_limit"])
    if kept["python_path"] is None:
        os.environ.pop("PYTHONPATH", None)
    else:
        os.environ["PYTHONPATH"] = kept["python_path"]


if __name__ == "__main__":
    sys.exit(main())
