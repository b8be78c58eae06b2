"""The run of a launch: its record, its tries, and its early end."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.blocks import processes, store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.run_facts import ask
from slurm_ray_flow.blocks.waits import within
from slurm_ray_flow.core.errors import ConnectionFailed, Lost, ResultError, RunError, SlurmRayFlowError
from slurm_ray_flow.core.interruption import interruptible
from slurm_ray_flow.core.launch_events import Note, Warned, publish
from slurm_ray_flow.core.run import CallEnd, Event, Liveness, RunPaths, RunRecord, RunState, error_of, find_event
from slurm_ray_flow.core.run_state import NO_WORD, RunFacts, RunStatus, run_state

if TYPE_CHECKING:
    from slurm_ray_flow.core.scan import FunctionSource

CANCEL_SECONDS = 15.0
"""Seconds that a cancelled run may take to end; the head gives the function 3 s after its SIGTERM."""
HARD_SECONDS = 8.0
"""Seconds after which the cluster's scheduler, if there is one, is asked to end a cancelled run."""
ANSWER_SECONDS = 12.0
"""Seconds that the end of a run waits for an answer of its cluster."""
_INHERITED = ("attempt", "allocation", "warm", "handed_over", "handed_over_at", "created")
"""The fields of an earlier record that a picked-up run keeps."""


@dataclasses.dataclass(frozen=True)
class ValueFile:
    """The value of another run on the cluster: the path of its outcome, its digest, and its bytes."""

    path: str
    sha256: str
    size: int


@dataclasses.dataclass(frozen=True)
class Call:
    """One function with its arguments, in the store at home.

    Attributes:
        function, arguments: digests of the two payloads.
        target: the source that the scan starts from.
        label: the function's name, for people.
        content: the digest of function and arguments by their content, for `cache=`; "" without that option.
        undigested: the reason that there is no such digest in spite of the option.
        pilot: the settings of a pilot (`remote/driver/pilot.py`), which takes bundles of items and calls the function
            for each item; None for one call.
        values: values of other runs on the cluster that the arguments refer to.
        inline: gives the digest of arguments that have values themselves, in the place of references to these digests.
        awaited: the states of the tasks that have waited for values, by which Prefect draws edges to the steps.
        prepared: what an earlier process has prepared for the call (`tasks/prepared.py` `Prepared`), as JSON; "" for
            nothing.
    """

    function: str
    arguments: str
    target: FunctionSource
    label: str
    content: str = ""
    undigested: str = ""
    pilot: Mapping[str, Any] | None = None
    values: tuple[ValueFile, ...] = ()
    inline: Callable[[frozenset[str]], str] | None = None
    awaited: tuple[Any, ...] = ()
    prepared: str = ""


class Run:
    """The run of one launch, under one id that Prefect, the cluster's folders and home's record share.

    Attributes:
        handed_over: whether the cluster may have started this try already.
        over: whether it is certain that nothing of this try runs on the cluster.
        call_ended: the end of the call on the cluster, once it is known.
        may_leave_value: a large value need not come home with the end of the launch.
    """

    def __init__(self, run_id: str, label: str, cluster: Cluster, gpus: int) -> None:
        process = processes.this_process()
        self.record = RunRecord(
            run_id=run_id,
            flow_run_id=run_id,
            cluster=cluster.label,
            kind=cluster.kind,
            root=str(cluster.root_folder),
            attempt=run_id,
            allocation=run_id,
            function=label,
            pid=process.pid,
            started=process.started,
            boot_id=process.boot_id,
            gpus=gpus,
        )
        self.handed_over = False
        self.over = True
        self.call_ended: CallEnd | None = None
        self.may_leave_value = False
        if earlier := store.known_record(run_id):  # Prefect starts the same flow run again
            self._follow_earlier_process(earlier)
        store.save_record(self.record)

    def _follow_earlier_process(self, earlier: RunRecord) -> None:
        """Follow an earlier process of this run: go on with its try on the cluster, or begin a new one."""
        cluster = (earlier.kind, earlier.cluster, earlier.root)
        if earlier.handed_over and cluster == (self.record.kind, self.record.cluster, self.record.root):
            inherited = {name: getattr(earlier, name) for name in _INHERITED}
            self.record = dataclasses.replace(self.record, **inherited)
            self.handed_over, self.over = True, False
            return
        self.record = dataclasses.replace(self.record, attempt=earlier.attempt)
        self.begin_next_try()

    @property
    def paths(self) -> RunPaths:
        return self.record.paths

    def note(self, **changes: Any) -> None:
        """Change fields of the record, and save it."""
        self.record = dataclasses.replace(self.record, **changes)
        store.save_record(self.record)

    def begin_next_try(self) -> None:
        """Begin a new try, with a folder of its own: no file of an earlier try can be taken for its outcome."""
        _, _, number = self.record.attempt.partition(".")
        attempt = f"{self.record.run_id}.{int(number or 1) + 1}"
        self.note(attempt=attempt, allocation=attempt, handed_over=False)
        self.handed_over, self.over, self.call_ended = False, True, None

    def hand_over(self) -> None:
        """Note that the cluster may have this try from now on, even if this process ends."""
        self.handed_over = True
        self.note(handed_over=True, handed_over_at=time.time())

    @contextlib.contextmanager
    def end_noted(self) -> Iterator[None]:
        """Note the run's end in the record, so that nobody need ask the cluster for it.

        Note the failure of the launch, too: without a try on the cluster, no event says it.
        """
        try:
            yield
        except BaseException as error:
            cause = getattr(error, "cause", "") if isinstance(error, Exception) else "cancelled"
            self.note(failure=getattr(error, "what", str(error)) or type(error).__name__, failure_cause=cause)
            if self.over:
                self._note_end(CallEnd(None, cause))
            raise
        self._note_end(CallEnd("value"))

    def _note_end(self, fallback: CallEnd) -> None:
        """Note the call's end, even if the launch failed after it; without one, note `fallback`."""
        status = run_state(RunFacts(self.record, call_end=self.call_ended or fallback))
        usage = self.call_ended.usage if self.call_ended is not None else None
        end = {"ended": status.state.value, "ended_at": time.time(), "failure_cause": status.cause}
        self.note(**end, waiting="", usage=usage, handed_over=False)

    @contextlib.contextmanager
    def released_at_the_end(self, cluster: Cluster) -> Iterator[None]:
        """End the run on the cluster when the block raises.

        After a `ConnectionFailed` the run goes on there, and `srf attach` finds it.
        """
        self.over = False
        try:
            yield
        except BaseException as error:
            if self.call_ended:
                self.over = True
            elif not isinstance(error, ConnectionFailed):
                self._release(cluster)
            raise
        self.over = True

    def _release(self, cluster: Cluster) -> None:
        """End the run on the cluster, and warn if that can't be verified."""
        unverified_ends.add(self.record.run_id)
        publish(Note(f"ends the run on {cluster.label}"))
        try:
            events = _end_run(self.record, cluster)
        except SlurmRayFlowError as error:
            publish(Warned(f"{error.what}; {error.advice}"))
            return
        if events is None:
            publish(Warned(f"the run does not end; {_advice_for_later(self.record)}"))
            return
        unverified_ends.discard(self.record.run_id)
        self.over = True
        if ended := find_event(events, "call_ended"):
            self.call_ended = CallEnd.from_event(ended)


unverified_ends: set[str] = set()
"""Runs whose end this process could not verify; it does not try a second time."""


def _advice_for_later(record: RunRecord) -> str:
    return f"`srf cancel {record.run_id[:8]}` ends it when {record.cluster} answers, `srf runs` says what became of it"


def release(record: RunRecord, cluster: Cluster) -> bool:
    """End a run on its cluster. Safe to call at any time, from any process, again and again.

    Returns:
        Whether it is verified that nothing of this call runs any more.

    Raises:
        ConnectionFailed: the cluster does not answer.
    """
    return _end_run(record, cluster) is not None


def _end_run(record: RunRecord, cluster: Cluster) -> list[Event] | None:
    """End a run; gives its events, or None where it is still under way after some time."""

    def silent() -> ConnectionFailed:
        what = f"{record.cluster} does not answer: it is not known whether run {record.run_id[:8]} has ended there"
        return ConnectionFailed(what, where=where(record), advice=_advice_for_later(record))

    with interruptible(lambda: None):
        facts = within(ANSWER_SECONDS, lambda: ask(record, cluster), silent)
        if not facts.head_alive:
            return list(facts.events)
        return within(CANCEL_SECONDS + 1, lambda: _end_head(record, cluster), silent)


def _end_head(record: RunRecord, cluster: Cluster) -> list[Event] | None:
    cluster.cancel(record.paths)
    started, hard = time.monotonic(), False
    while time.monotonic() - started < CANCEL_SECONDS:
        facts = ask(record, cluster)
        if not facts.head_alive:
            return list(facts.events)
        if not hard and time.monotonic() - started > HARD_SECONDS:
            cluster.cancel(record.paths, hard=True)
            hard = True
        time.sleep(0.05)
    return None


def error_of_lost_head(liveness: Liveness, fallback: str, place: str) -> RunError:
    """The error for a head that is gone: by the cluster's cause, else a `Lost`."""
    return error_of(liveness.cause, liveness.message, place) if liveness.cause else Lost(fallback, where=place)


def error_without_outcome(record: RunRecord, status: RunStatus) -> RunError:
    """The error for a run that has ended without an event of its call's end."""
    if status.state is RunState.SUCCEEDED:
        what = f"run {record.run_id[:8]} has succeeded, but {record.cluster} no longer has what it kept of that"
        return ResultError(what, where=where(record), advice="start the function again; cache=... keeps its next value")
    if record.unsent and status.state is RunState.LOST:
        return Lost(status.message, advice="start the function again")
    cause = status.cause or status.state.value  # a state that is no cause counts as a crash
    return error_of(cause, status.message or NO_WORD, where(record))


def where(record: RunRecord) -> str:
    """The place of an error: cluster, run and log."""
    return f"{record.cluster}, run {record.run_id[:8]}, log {record.paths.log}"
