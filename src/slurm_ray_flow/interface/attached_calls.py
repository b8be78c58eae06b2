"""The handles of a map's calls in a process that attached to the map: another process begins the calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.map_record import CANCELLED, MapRecord, find_map, note_cancelled, note_failed
from slurm_ray_flow.core.errors import Cancelled, Lost
from slurm_ray_flow.core.run import RunState
from slurm_ray_flow.interface.handle import Handle

SHORTEST_WAIT, LONGEST_WAIT = 0.1, 5.0
"""Seconds between two looks at calls that another process begins."""
ENGINE_SECONDS = 30.0
"""Seconds between two looks at whether the engine runs, on which a map waits whose process is gone."""


class AttachedCall(Handle[Any]):
    """A call that had not begun when a process attached to its map.

    A run that its cluster never had, since the process that launched it was killed before, is followed by another one.
    """

    def __init__(self, record: MapRecord, index: int) -> None:
        super().__init__(record.runs.get(index, ""))
        self._record, self._index = record, index

    def has_begun(self) -> bool:
        """Whether the call has begun; `run_id` is its run then."""
        if not self.run_id or not self._record.began(self._index):
            self._record = find_map(self._record.map_id)
            self.run_id = self._record.runs.get(self._index, "")
        return self._record.began(self._index)

    def done(self) -> bool:
        return super().done() if self.has_begun() else self._failure() != ""

    def status(self) -> RunState:
        if self.has_begun():
            return super().status()
        if how := self._record.ended(self._index):
            return RunState.CANCELLED if how == CANCELLED else RunState.FAILED
        return RunState.WAITING if self._record.goes_on else RunState.LOST

    def result(self, timeout: float | None = None) -> Any:
        __tracebackhide__ = True
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._await_begin(timeout, deadline)
            try:
                return super().result(None if deadline is None else max(deadline - time.monotonic(), 0.0))
            except Lost:
                if self.has_begun():
                    raise

    def _await_begin(self, timeout: float | None, deadline: float | None) -> None:
        """Wait until the call is a run.

        Raises:
            Cancelled, Lost: it never will be.
            GridError: the process that was to begin it is gone, and the engine can't be started.
            TimeoutError: it is not by then.
        """
        wait = SHORTEST_WAIT
        while not self.has_begun():
            if failure := self._failure():
                kind = Cancelled if self.status() is RunState.CANCELLED else Lost
                raise kind(failure, advice="start the function again with this value")
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"call {self._index} has not begun within {timeout} s")
            ensure_begun(self._record)
            time.sleep(wait)
            wait = min(wait * 1.5, LONGEST_WAIT)

    def logs(self, follow: bool = False) -> Iterator[str]:
        return super().logs(follow) if self.has_begun() else iter(())

    def cancel(self) -> bool:
        """End the call, or have it never begin.

        Returns:
            Whether it was waiting or running, and now is gone.
        """
        if self.has_begun():
            return super().cancel()
        if self._failure():
            return False
        name = f"call {self._index} of {self._record.function}"
        note_failed(self._record.map_id, self._index, Cancelled(f"{name} was cancelled before it had begun"))
        if self.has_begun():  # it began just before
            return super().cancel()
        return True

    def _failure(self) -> str:
        """The reason that the call will have no run; "" where it may have one."""
        record, index = self._record, self._index
        name = f"call {index} of {record.function} ({record.values[index]})"
        if index in record.failures:
            return f"{name} never became a run: {record.failures[index]}"
        if record.is_cancelled:
            return f"{name} was cancelled before it had begun"
        return "" if record.goes_on else f"{name} was not begun: the process that was to begin it is gone"

    def __reduce__(self) -> tuple[Any, ...]:
        return handle_of_call, (self._record, self._index)

    def __repr__(self) -> str:
        return (
            f"Handle({self.run_id!r})" if self.run_id else f"<call {self._index} of {self._record.function}, not begun>"
        )


def handle_of_call(record: MapRecord, index: int) -> Handle[Any]:
    """The handle of one call of a map, in a process that attached to the map."""
    run_id = record.runs.get(index, "")
    run = store.known_record(run_id) if run_id else None
    return AttachedCall(record, index) if not run_id or (run and run.unsent) else Handle(run_id)


def unpickled_call(map_id: str, index: int, run_id: str) -> Handle[Any]:
    """The handle of a call in another process than that which began it."""
    return Handle(run_id) if run_id else handle_of_call(find_map(map_id), index)


def cancel_map(map_id: str) -> int:
    """Have no more calls of a map begin, whichever process begins them, and end those that are under way.

    Returns:
        How many were under way and now are gone.

    Raises:
        RunError: it could not be verified that they are gone.
    """
    note_cancelled(map_id)  # first: whoever begins a call from now on, reads it
    record = find_map(map_id)
    return sum(handle_of_call(record, index).cancel() for index in sorted(record.runs))


_asked: dict[str, float] = {}


def ensure_begun(record: MapRecord) -> None:
    """See that the engine runs, if a map waits for it: the process that began its calls is gone.

    Raises:
        GridError: the engine can't be started.
    """
    if record.alive or time.monotonic() - _asked.get(record.map_id, float("-inf")) < ENGINE_SECONDS:
        return
    from slurm_ray_flow.blocks.grid_engine import ensure_engine

    _asked[record.map_id] = time.monotonic()
    ensure_engine()
