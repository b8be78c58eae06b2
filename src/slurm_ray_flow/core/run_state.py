"""The state of a run: handles, `srf runs`, the launch and the sweep all take it from here. Pure functions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from slurm_ray_flow.core.run import CallEnd, Event, Liveness, RunRecord, RunState, find_event

SILENT = 86400.0
"""Seconds without an answer of a cluster after which its runs without a launch count as lost."""


@dataclass(frozen=True)
class RunFacts:
    """The facts from which the state of a run follows.

    Attributes:
        record: the run's record at home.
        events: the events of the newest try; on a warm cluster the allocation's `allocated` may be among them.
        liveness: whether the run's head lives; None where this process can't know.
        call_end: how the call ended, where that is known without the events.
        silent: seconds since the cluster's last answer; None where this process does not ask the cluster.
        launch_alive: whether the launching process lives; None for a process of another host, which can't be seen.
        now: seconds since 1970.
    """

    record: RunRecord
    events: Sequence[Event] = ()
    liveness: Liveness | None = None
    call_end: CallEnd | None = None
    silent: float | None = None
    launch_alive: bool | None = False
    now: float = field(default_factory=time.time)

    def has(self, event: str) -> bool:
        """Whether there is such an event."""
        return find_event(self.events, event) is not None

    @property
    def head_alive(self) -> bool:
        """Whether the head lives, or will start."""
        return self.liveness is not None and self.liveness.alive

    @property
    def launch_goes_on(self) -> bool:
        """Whether the launch may go on: its process lives; or is on another host, and the run is new or waits."""
        if self.launch_alive is None:
            return bool(self.record.waiting) or self.record.is_new(self.now)
        return self.launch_alive


class Evidence(Enum):
    """The evidence for a state."""

    CALL_END = "the last event of the call"
    RECORD = "the end in the record at home"
    CLUSTER = "the cluster's report about a head that is gone"
    LAUNCH = "the record of the launch, and whether its process lives"
    HEAD = "whether the head lives"
    SILENCE = "the cluster does not answer"


@dataclass(frozen=True)
class RunStatus:
    """The state of a run with its evidence.

    Attributes:
        state: the state.
        evidence: the evidence for it.
        cause: why there is no value, one of the words of `CAUSES` or "user_code"; "" for all other states.
        message: the cause, or the reason of a wait, in words for people.
        call_end: how the call ended.
        ended_at: when the call ended, in seconds since 1970.
        settled: whether the state can't change any more; the head of a new run may still start.
    """

    state: RunState
    evidence: Evidence
    cause: str = ""
    message: str = ""
    call_end: CallEnd | None = None
    ended_at: float | None = None
    settled: bool = False


NO_WORD = "the program that ran the function is gone and left no word"


def run_state(facts: RunFacts) -> RunStatus:
    """The state of a run."""
    status = _noted_end(facts) or _before_submission(facts) or _after_submission(facts)
    over = facts.record.ended or facts.record.failure
    if status.state in {RunState.FAILED, RunState.LOST} and facts.launch_goes_on and not over:
        return RunStatus(RunState.STARTING, Evidence.LAUNCH, call_end=status.call_end)  # it may be tried again
    return status


def _noted_end(facts: RunFacts) -> RunStatus | None:
    record, event = facts.record, find_event(facts.events, "call_ended")
    call_end = CallEnd.from_event(event) if event else facts.call_end
    if call_end is not None:
        cause = "" if call_end.outcome == "value" else call_end.cause or _cause_of_unnamed_end(call_end)
        ended_at = event.get("time") if event else None
        return _final(cause, Evidence.CALL_END, call_end.message, call_end=call_end, ended_at=ended_at)
    if record.ended:
        state, at = RunState(record.ended), record.ended_at or None
        return RunStatus(state, Evidence.RECORD, record.failure_cause, record.failure, ended_at=at, settled=True)
    return None


def _cause_of_unnamed_end(call_end: CallEnd) -> str:
    return "user_code" if call_end.outcome == "exception" else "crashed"


def _before_submission(facts: RunFacts) -> RunStatus | None:
    """The state of a run that waits for a shared server, before its submission; None for other runs."""
    if not facts.record.waiting:
        return None
    if facts.launch_goes_on:
        return RunStatus(RunState.WAITING, Evidence.LAUNCH, message=facts.record.waiting)
    return _never_submitted(facts, settled=True)


def _after_submission(facts: RunFacts) -> RunStatus:
    liveness = facts.liveness
    if liveness is None:
        return _unanswered(facts)
    if liveness.alive:
        return RunStatus(_state_while_alive(facts), Evidence.HEAD, message=liveness.waiting)
    if liveness.cause:
        return _final(liveness.cause, Evidence.CLUSTER, liveness.message)
    if facts.record.failure:
        return _final(facts.record.failure_cause or "crashed", Evidence.LAUNCH, facts.record.failure)
    if facts.has("call_started") or facts.has("allocated"):
        return _final("lost", Evidence.HEAD, NO_WORD)
    return _without_trace(facts)


def _without_trace(facts: RunFacts) -> RunStatus:
    """The state of a run that the cluster does not know; its head may have been started a moment ago."""
    if facts.launch_goes_on:
        return RunStatus(RunState.PREPARING, Evidence.LAUNCH)
    return _never_submitted(facts, settled=not facts.record.is_new(facts.now))


def _state_while_alive(facts: RunFacts) -> RunState:
    """The state of a run whose head lives, or will start."""
    call_started = facts.has("call_started")
    if not (call_started or facts.has("allocated")) or (facts.has("waiting") and not facts.has("lock_held")):
        return RunState.WAITING
    return RunState.RUNNING if call_started else RunState.STARTING


def _unanswered(facts: RunFacts) -> RunStatus:
    """The state of a run whose cluster does not answer: as its events say, and lost after a day."""
    if facts.silent is not None and facts.silent >= SILENT and not facts.launch_goes_on:
        message = "the launching process is gone, and the cluster has not answered for a day"
        return _final("lost", Evidence.SILENCE, message)
    return RunStatus(_state_while_alive(facts), Evidence.SILENCE)


def _never_submitted(facts: RunFacts, *, settled: bool) -> RunStatus:
    record = facts.record
    message = f"the process that launched run {record.run_id[:8]} is gone, and {record.cluster} never had it"
    return _final("lost", Evidence.LAUNCH, message if record.unsent else NO_WORD, settled=settled)


def _final(
    cause: str,
    evidence: Evidence,
    message: str,
    *,
    call_end: CallEnd | None = None,
    ended_at: float | None = None,
    settled: bool = True,
) -> RunStatus:
    ends = {"": RunState.SUCCEEDED, "cancelled": RunState.CANCELLED, "lost": RunState.LOST}
    return RunStatus(ends.get(cause, RunState.FAILED), evidence, cause, message, call_end, ended_at, settled)
