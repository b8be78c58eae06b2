"""Values of other runs as arguments: a handle, handles or a campaign in a call stands for its value.

The launch waits for them before its first step. Where a value lies on the call's own cluster, in the same root, and is
large, the arguments refer to it, and `start_ray` has the run's folder keep it; other values travel with the arguments.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from prefect import task
from prefect.client.schemas.objects import FlowRunResult
from prefect.states import Cancelled as CancelledState
from prefect.task_engine import run_task_sync

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.run_facts import ask
from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.errors import Cancelled, ConnectionFailed, InputFailed, SlurmRayFlowError
from slurm_ray_flow.core.interruption import interrupted, pause
from slurm_ray_flow.core.run import RunState, is_from_the_cluster, shorten
from slurm_ray_flow.core.run_state import run_state
from slurm_ray_flow.interface.cancellation import end_with_process
from slurm_ray_flow.interface.handle import Handle, Producer
from slurm_ray_flow.interface.parameters import COLLECTIONS, PLAIN, Arguments, is_small_plain
from slurm_ray_flow.interface.progress import terminal_display
from slurm_ray_flow.remote.shared import rebuilding
from slurm_ray_flow.tasks.retry import ONCE
from slurm_ray_flow.tasks.run import Call, Run, ValueFile, where
from slurm_ray_flow.tasks.turn import WaitReport

LARGE = 1 << 20
"""The bytes from which on a value is not sent to a cluster that has it."""
MOST_TASKS = 20
"""So many producers have a task of their own in Prefect; more of them share one."""
STATE = "Waiting for other runs"
SHORTEST_WAIT, LONGEST_WAIT = 0.1, 2.0
"""Seconds between two looks at runs that have not ended."""
DEPTH = 50


@dataclasses.dataclass(frozen=True)
class ValueThere:
    """In the arguments, a value that the run's folder has. The driver loads it in its place."""

    sha256: str

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilding.value_there, (self.sha256,)


class Places:
    """The places of producers in the plain collections of a value.

    Attributes:
        sources: by each producer's id the run or campaign that it stands for; a list of runs for handles.
    """

    def __init__(self, value: Any) -> None:
        self.sources: dict[int, Source | list[Source]] = {}
        self._value, self._holding = value, dict[int, bool]()
        self._find(value, DEPTH)

    def _find(self, value: Any, depth: int) -> bool:
        if issubclass(type(value), Producer):  # `isinstance` would ask a proxy's target
            are_many = isinstance(value, Sequence)
            self.sources[id(value)] = list(map(Source, value)) if are_many else Source(value)
            return True
        if not _is_collection(value) or depth == 0:
            return False
        if id(value) not in self._holding:
            self._holding[id(value)] = False
            items = value.values() if type(value) is dict else value
            found = [] if PLAIN.issuperset(map(type, items)) else [self._find(item, depth - 1) for item in items]
            self._holding[id(value)] = any(found)
        return self._holding[id(value)]

    @property
    def groups(self) -> list[list[Source]]:
        """The sources of each producer."""
        return [one if isinstance(one, list) else [one] for one in self.sources.values()]

    def filled(self, give: Callable[[Source], Any]) -> Any:
        """The value with what `give` gives in the places of producers; what holds none stays the same object."""
        by = {
            name: [give(source) for source in one] if isinstance(one, list) else give(one)
            for name, one in self.sources.items()
        }
        return self._filled(self._value, by)

    def _filled(self, value: Any, made: dict[int, Any]) -> Any:
        """The value or a part of it; `made` has what is new by the ids of the old, so that it stays one object."""
        if id(value) not in made:
            if not self._holding.get(id(value)):
                return value
            if type(value) is dict:
                made[id(value)] = {key: self._filled(item, made) for key, item in value.items()}
            else:
                items = [self._filled(item, made) for item in value]
                made[id(value)] = value._make(items) if hasattr(value, "_make") else type(value)(items)
        return made[id(value)]


def _is_collection(value: Any) -> bool:
    return type(value) in COLLECTIONS or (issubclass(type(value), tuple) and hasattr(value, "_make"))


class Source:
    """One run or campaign whose value is wanted.

    Args:
        producer: its handle, or the campaign.
    """

    def __init__(self, producer: Any) -> None:
        self.producer, self.handle = producer, producer if isinstance(producer, Handle) else None
        self._values: list[Any] = []

    @property
    def run_id(self) -> str:
        """The run's id; "" for a campaign, and for a call that never became a run."""
        return self.handle.run_id if self.handle else ""

    @property
    def name(self) -> str:
        """Its name in messages."""
        record = store.known_record(self.run_id) if self.run_id else None
        if record is not None:
            return f"run {self.run_id[:8]} ({record.function})"
        return repr(self.handle).strip("<>") if self.handle else f"campaign {self.producer.id[:8]}"

    @property
    def flow_run_id(self) -> str:
        """Its flow run in Prefect; "" for none."""
        return self.run_id if self.handle else str(self.producer.status().flow_run_id or "")

    @property
    def is_at_home(self) -> bool:
        """Whether its value is here already."""
        return self.handle is None or self.handle._has_value_here()

    def has_ended(self) -> bool:
        """Whether it has ended. A cluster that does not answer for a while is to be asked again."""
        try:
            if self.handle is None:
                return bool(self.producer.state.final)
            return self.handle._future.done() if self.handle._future is not None else self.handle.done()
        except ConnectionFailed as error:
            if not error.transient:
                raise
            return False

    def check(self) -> None:
        """Check that it has a value, once it has ended, without bringing a large one home.

        Raises:
            InputFailed: it has none.
        """
        if self.is_at_home or (self.handle is not None and self.handle.status() is not RunState.SUCCEEDED):
            self.value()

    def value(self) -> Any:
        """Its value, once it has ended.

        Raises:
            InputFailed: it has none.
        """
        try:
            if not self._values:
                self._values.append(self.handle.result() if self.handle else list(self.producer.results()))
            return self._values[0]
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not is_from_the_cluster(error):
                raise
            interrupted()  # this launch may be the one that was cancelled
            shorten(error)
            raise self._failure(error) from error

    def _failure(self, error: BaseException) -> InputFailed:
        record = store.known_record(self.run_id) if self.run_id else None
        reason = str(getattr(error, "what", error)).partition("\n")[0]
        what = f"{self.name}, whose value is an argument of this run, has none: {type(error).__name__}: {reason}"
        return InputFailed(what, where=where(record) if record else "", advice="start it again, then this one")


class Wait:
    """A wait for sources. The first one that fails ends it.

    Args:
        sources: all of them.
        show: gets the reason of the wait, and "" when it is over.
        check: is called again and again; an exception ends the wait.
    """

    def __init__(
        self, sources: Sequence[Source], show: Callable[[str], object], check: Callable[[], object] = interrupted
    ) -> None:
        self._pending, self._show, self._check = list(sources), show, check

    def until(self, sources: Sequence[Source], *, begun: bool = False) -> None:
        """Wait until these have ended; or with `begun`, until they are runs with an id."""
        seconds = SHORTEST_WAIT
        while True:
            self._check()
            ended = {source for source in self._pending if source.has_ended()}
            self._pending = [source for source in self._pending if source not in ended]
            for source in ended:
                source.check()
            awaited = set(sources).intersection(self._pending)
            if all(begun and source.flow_run_id for source in awaited):
                break
            more = f" and {len(self._pending) - 1} more" if len(self._pending) > 1 else ""
            self._show(f"waiting for {self._pending[0].name}{more}")
            pause(seconds)
            seconds = SHORTEST_WAIT if ended else min(seconds * 1.3, LONGEST_WAIT)
        if not self._pending:
            self._show("")


def values_at_home(value: Any) -> Any:
    """A value with the values of its producers in their places, for which this waits.

    Raises:
        InputFailed: a producer has ended without a value.
    """
    places = Places(value)
    if not places.sources:
        return value
    sources = list(itertools.chain(*places.groups))
    with events.streamed_to(terminal_display()):
        Wait(sources, lambda text: events.publish(events.Note(text)) if text else None).until(sources)
    return places.filled(Source.value)


def complete_call(
    arguments: Arguments, run: Run, cluster: Cluster, describe: Callable[[Arguments, Arguments], Call]
) -> Call:
    """Wait for the producers in a call's arguments; gives the call with their values.

    Args:
        arguments: the arguments.
        run: the call's run.
        cluster: its cluster.
        describe: makes a call of the arguments as they are sent, and of those as far as home has them.

    Raises:
        InputFailed: a producer has ended without a value.
    """
    places = Places((arguments.parameters, arguments.args, arguments.kwargs))
    awaited = _await_in_prefect(places.groups, run)
    inputs = _Inputs(run, cluster)

    def filled(give: Callable[[Source], Any]) -> Arguments:
        new = copy.copy(arguments)
        new.parameters, new.args, new.kwargs = places.filled(give)
        new._digest = ""
        return new

    def inline(missing: frozenset[str]) -> str:
        return filled(lambda source: inputs.from_home(source, missing)).stored()

    call = describe(filled(inputs.sent), filled(inputs.known))
    return dataclasses.replace(call, values=tuple(inputs.files.values()), inline=inline, awaited=awaited)


class _Inputs:
    """The values of sources, for a run on a cluster.

    Attributes:
        files: the values that are on the cluster, by their digests.
    """

    def __init__(self, run: Run, cluster: Cluster) -> None:
        self._run, self._cluster = run, cluster
        self.files: dict[str, ValueFile] = {}
        self._references: dict[int, ValueThere] = {}
        self._modules: dict[str, list[str]] = {}

    def sent(self, source: Source) -> Any:
        """What is sent for a source: its value, or a reference to a file on the cluster."""
        if source.is_at_home and (source.handle is None or is_small_plain(source.value())):
            return source.value()
        file = self._file_there(source.run_id)
        if file is None:
            return source.value()
        self.files[file.sha256] = file
        return self._references.setdefault(id(source.producer), ValueThere(file.sha256))

    def known(self, source: Source) -> Any:
        """The value as far as home has it, for the scan of its types; else the modules of its types."""
        reference = self._references.get(id(source.producer))
        if source.is_at_home or reference is None:
            return source.value()
        return [sys.modules[name] for name in self._modules[reference.sha256] if name in sys.modules]

    def from_home(self, source: Source, missing: frozenset[str]) -> Any:
        """What is sent instead where the cluster lacks the files of these digests."""
        reference = self._references.get(id(source.producer))
        return source.value() if reference is None or reference.sha256 in missing else reference

    def _file_there(self, run_id: str) -> ValueFile | None:
        """The outcome of a run, if it is large and lies in this run's root."""
        record, own = store.known_record(run_id), self._run.record
        if record is None or (record.kind, record.cluster, record.root) != (own.kind, own.cluster, own.root):
            return None
        try:
            ended = run_state(ask(record, self._cluster)).call_end
        except SlurmRayFlowError:
            return None
        if ended is None or ended.outcome != "value" or ended.sha256 is None or ended.most < LARGE:
            return None
        self._modules[ended.sha256] = ended.modules or []
        return ValueFile(str(record.paths.outcome), ended.sha256, ended.most)


class _WaitOfRun(WaitReport):
    """The report of a run's wait, which is told, too, when the process ends before it is over."""

    def __init__(self, run: Run) -> None:
        super().__init__(run, STATE, "all values that it waited for are there")
        self.is_over = False

    def show(self, text: str | None) -> None:
        super().show(text)
        if self._run.record.waiting != self.text:
            self._run.note(waiting=self.text)

    def on_interrupt(self) -> None:
        """Go on: an interrupted cell is no cancel of what other cells have submitted."""

    def on_process_end(self) -> str:
        """What to say of a run that will never be submitted."""
        record, reason = self._run.record, self.text or "waiting for other runs"
        return "" if self.is_over else f"{record.function}: run {record.run_id[:8]} was not submitted: it was {reason}"


def _await_in_prefect(groups: Sequence[list[Source]], run: Run) -> tuple[Any, ...]:
    """Wait in tasks of Prefect's that have the producers' flow runs as inputs; gives the tasks' states."""
    sources = list(itertools.chain(*groups))
    report = _WaitOfRun(run)
    request = store.cancel_request(run.record.run_id)
    request.unlink(missing_ok=True)  # of an earlier process, where Prefect starts the flow run again

    def check() -> None:
        interrupted()
        if request.exists():
            raise Cancelled("the run was cancelled while it waited for other runs", where=where(run.record))

    waiting = Wait(sources, report.show, check)
    end_with_process(report)
    events.publish(events.StepStarted(events.AWAIT_VALUE))
    try:
        return tuple(_wait_in_task(waiting, group) for group in (groups if len(groups) <= MOST_TASKS else [sources]))
    finally:
        report.is_over = True


def _wait_in_task(waiting: Wait, sources: list[Source]) -> Any:
    """Wait for sources in one task, by which Prefect knows of what the run depends."""
    waiting.until(sources, begun=True)
    failures: list[BaseException] = []
    name = sources[0].name if len(sources) == 1 else f"{len(sources)} runs"

    @task(name=events.AWAIT_VALUE, task_run_name=f"value of {name}", **ONCE)
    def await_value(of: list[str]) -> Any:  # noqa: ARG001 - Prefect shows it
        try:
            waiting.until(sources)
        except BaseException as error:
            failures.append(error)
            if isinstance(error, Cancelled):
                return CancelledState(message=error.what)
            raise

    ids = [flow_run_id for source in sources if (flow_run_id := source.flow_run_id)]
    inputs: dict[str, set[Any]] = {"of": set(map(_input, ids))}
    state = run_task_sync(await_value, parameters={"of": ids}, return_type="state", dependencies=inputs)
    if failures:
        raise failures[0]
    return state


def _input(flow_run_id: str) -> Any:
    """The input of a task that is the value of a flow run."""
    return FlowRunResult(id=UUID(flow_run_id))
