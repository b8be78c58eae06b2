"""What became of a run: the one answer of a handle, of `srf runs`, of the launch itself, of the sweep and its slots.

Nothing here looks at the world: `run_state` takes what is known of a run, and says what that means.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from slurm_ray_flow.core.run import CallEnd, Event, Liveness, RunRecord, RunState, find_event

SILENT = 86400.0
"""So long a cluster may give no answer until the runs on it that nobody waits for count as lost."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run.

    Attributes:
        record: what its launch noted at home.
        events: those of its newest try; of one on a warm cluster, the allocation's start may be among them.
        life: whether its head lives; None where that can't be said from here.
        call_end: how its call ended, where that is known without the events.
        silent: for how many seconds the cluster has given no answer; None where it is not asked from here.
        launch_alive: whether the process that launched it lives; None where it is another host's and can't be seen.
        now: seconds since 1970.
    """

    record: RunRecord
    events: Sequence[Event] = ()
    life: Liveness | None = None
    call_end: CallEnd | None = None
    silent: float | None = None
    launch_alive: bool | None = False
    now: float = field(default_factory=time.time)

    def has(self, event: str) -> bool:
        """Whether there is such an event."""
        return find_event(self.events, event) is not None

    @property
    def head_alive(self) -> bool:
        """Whether the program on the cluster lives, or is to come."""
        return self.life is not None and self.life.alive

    @property
    def launch_goes_on(self) -> bool:
        """Whether the launch is worth waiting for: it lives, or it is another host's and has not had its time yet."""
        if self.launch_alive is None:
            return bool(self.record.waiting) or self.record.is_new(self.now)
        return self.launch_alive


class Evidence(Enum):
    """What a state follows from."""

    CALL_END = "the last event of the call"
    RECORD = "the end that home has noted"
    CLUSTER = "what the cluster says of a program that is gone"
    LAUNCH = "what the launch noted, and whether its process lives"
    HEAD = "whether the program on the cluster lives"
    SILENCE = "nobody who knows can be asked"


@dataclass(frozen=True)
class RunStatus:
    """What became of a run.

    Attributes:
        state: where it is on its way.
        evidence: what that follows from.
        cause: why there is no value, one of the words of `CAUSES` or "user_code"; "" for all other states.
        message: what people read of the cause, or of what is waited for.
        call_end: how its call ended.
        ended_at: when, in seconds since 1970.
        settled: whether the state is final for good: a program that was just launched may be still to come.
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
    """What became of a run."""
    status = _noted_end(facts) or _before_the_cluster(facts) or _on_the_cluster(facts)
    over = facts.record.ended or facts.record.failure
    if status.state in {RunState.FAILED, RunState.LOST} and facts.launch_goes_on and not over:
        return RunStatus(RunState.STARTING, Evidence.LAUNCH, call_end=status.call_end)  # it may be tried again
    return status


def _noted_end(facts: RunFacts) -> RunStatus | None:
    record, event = facts.record, find_event(facts.events, "call_ended")
    call_end = CallEnd.from_event(event) if event else facts.call_end
    if call_end is not None:
        cause = "" if call_end.outcome == "value" else call_end.cause or _unnamed(call_end)
        ended_at = event.get("time") if event else None
        return _final(cause, Evidence.CALL_END, call_end.message, call_end=call_end, ended_at=ended_at)
    if record.ended:
        state, at = RunState(record.ended), record.ended_at or None
        return RunStatus(state, Evidence.RECORD, record.failure_cause, record.failure, ended_at=at, settled=True)
    return None


def _unnamed(call_end: CallEnd) -> str:
    return "user_code" if call_end.outcome == "exception" else "crashed"


def _before_the_cluster(facts: RunFacts) -> RunStatus | None:
    """That of a run which waits in line for a shared server: nothing of it was submitted yet."""
    if not facts.record.waiting:
        return None
    if facts.launch_goes_on:
        return RunStatus(RunState.WAITING, Evidence.LAUNCH, message=facts.record.waiting)
    return _never_there(facts, settled=True)


def _on_the_cluster(facts: RunFacts) -> RunStatus:
    life = facts.life
    if life is None:
        return _unanswered(facts)
    if life.alive:
        return RunStatus(_way(facts), Evidence.HEAD, message=life.waiting)
    if life.cause:
        return _final(life.cause, Evidence.CLUSTER, life.message)
    if facts.record.failure:
        return _final(facts.record.failure_cause or "crashed", Evidence.LAUNCH, facts.record.failure)
    if facts.has("call_started") or facts.has("allocated"):
        return _final("lost", Evidence.HEAD, NO_WORD)
    return _without_head(facts)


def _without_head(facts: RunFacts) -> RunStatus:
    """That of a run of which the cluster knows nothing; its head may have been launched a moment ago."""
    if facts.launch_goes_on:
        return RunStatus(RunState.PREPARING, Evidence.LAUNCH)
    return _never_there(facts, settled=not facts.record.is_new(facts.now))


def _way(facts: RunFacts) -> RunState:
    """How far a run has come whose head lives, or is to come."""
    begun = facts.has("call_started")
    if not (begun or facts.has("allocated")) or (facts.has("waiting") and not facts.has("lock_held")):
        return RunState.WAITING
    return RunState.RUNNING if begun else RunState.STARTING


def _unanswered(facts: RunFacts) -> RunStatus:
    """A closed laptop or a broken network ends no run; but nobody waits for an answer for ever."""
    if facts.silent is not None and facts.silent >= SILENT and not facts.launch_goes_on:
        what = "the launching process is gone, and the cluster has not answered for a day"
        return _final("lost", Evidence.SILENCE, what)
    return RunStatus(_way(facts), Evidence.SILENCE)


def _never_there(facts: RunFacts, *, settled: bool) -> RunStatus:
    record = facts.record
    what = f"the process that launched run {record.run_id[:8]} is gone, and {record.cluster} never had it"
    return _final("lost", Evidence.LAUNCH, what if record.unsent else NO_WORD, settled=settled)


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
