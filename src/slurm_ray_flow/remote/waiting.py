"""The keeper's wait for its turn on a server under a lock: visible in the events, ended by a cancel at once."""

from __future__ import annotations

import os
import signal
import time
from typing import Any, Dict, Optional, Set

from slurm_ray_flow.remote.errors import OperationError
from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.turn import Turn, waits_for

TELL_EVERY = 1.0
"""Seconds between two events `waiting`, at least; they grow with the wait, so that one of days has hundreds."""
LATE = 1 / 60
"""So much of its wait may have passed before a change is told."""
LOOK_EVERY = 0.5

Reason = Dict[str, str]


def await_turn(run: Run, spec: Dict[str, Any], signals: Set[signal.Signals]) -> Turn:
    """Wait in the queue until the run holds what it needs.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        signals: the signals that end the wait; they are blocked.

    Raises:
        OperationError: the lock can't be had, or the run was cancelled meanwhile.
    """
    turn, teller = Turn(spec["lock"], spec), _Teller(run)
    deadline = _deadline(spec)
    while not turn.take():
        _check(run, deadline, turn)
        teller.tell(turn)
        received = signal.sigtimedwait(signals, turn.pause)
        if received is not None:
            name = signal.Signals(received.si_signo).name
            raise _given_up(turn, "cancelled", "The head was told to end by {}.".format(name))
    return turn


def _deadline(spec: Dict[str, Any]) -> Optional[float]:
    limit = spec["lock"].get("wait_limit", spec.get("wait_limit"))
    return None if limit is None else time.monotonic() + float(limit)


def _check(run: Run, deadline: Optional[float], turn: Turn) -> None:
    if os.path.exists(run.cancel):
        raise _given_up(turn, "cancelled", "The run was cancelled.")
    if not os.path.isdir(run.folder):
        raise _given_up(turn, "lost", "The run's folder is gone.")
    if deadline is not None and time.monotonic() > deadline:
        raise _given_up(turn, "lock", "The server did not become free in time. {}".format(_who(turn)))


def _who(turn: Turn) -> str:
    said = waits_for(turn)
    holder = said["holder"] or {}
    return "It is held by {}, and {} wait before this run.".format(holder.get("user") or "nobody", said["ahead"])


def _given_up(turn: Turn, cause: str, message: str) -> OperationError:
    turn.release()
    return OperationError(message, cause=cause)


class _Teller:
    """Records what a run waits for, whenever that has changed."""

    def __init__(self, run: Run) -> None:
        self._run, self._began, self._next = run, time.monotonic(), 0.0
        self._said: Dict[str, Any] = {}

    def tell(self, turn: Turn) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        said = waits_for(turn)
        self._next = now + (LOOK_EVERY if said == self._said else max(TELL_EVERY, LATE * (now - self._began)))
        if said != self._said:
            self._said = said
            self._run.record("waiting", **said)
