"""The verbs that look at runs, and end them."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import Parameter

from slurm_ray_flow.cli.names import A_CLUSTER, A_RUN
from slurm_ray_flow.cli.output import (
    STATES,
    Json,
    Switch,
    as_json,
    console,
    describe_error,
    print_exception,
    print_json,
    print_table,
    print_text,
    show_progress,
    table,
    tell,
)
from slurm_ray_flow.core.run import is_from_the_cluster
from slurm_ray_flow.core.text import plain

if TYPE_CHECKING:
    from rich.table import Table

    from slurm_ray_flow.blocks.catalog import CatalogRun
    from slurm_ray_flow.core.warm import Warm
    from slurm_ray_flow.interface.handle import Handle
    from slurm_ray_flow.tasks.question import Question


SECONDS = 8.0
"""How long all clusters together are waited for."""
SILENT_SECONDS = 60.0
"""For how long one that could not be asked is not asked again."""
NOT_KNOWN = "not known"
LOCAL = "local-machine"
"""The kind of cluster whose runs are known without asking: their folders are this machine's."""
FINAL = ("succeeded", "failed", "cancelled", "lost")
Known = tuple[str, "float | None", str]
"""A run's state, how long it took or has been under way, and why that is not known."""
Place = tuple[str, str, str]
"""A cluster as runs know it: kind, name, root folder."""


@dataclasses.dataclass(frozen=True)
class RunRow:
    """One line: a run, its state, how long it took or has been under way, and what it keeps warm.

    Attributes:
        why: why nothing is known of it; "" where something is.
    """

    run: CatalogRun
    state: str
    seconds: float | None
    warm: Warm | None = None
    why: str = ""

    @property
    def word(self) -> str:
        """The state that is filtered by."""
        return "warm" if self.warm else self.state


@dataclasses.dataclass(frozen=True)
class Filter:
    """Which runs are shown."""

    limit: int
    cluster: str | None
    states: tuple[str, ...]

    def takes(self, one: RunRow) -> bool:
        """Whether a run's state is one that is wanted."""
        return not self.states or one.word in self.states or ("active" in self.states and one.word not in FINAL)


class _ClusterQuery:
    """The runs of one cluster, looked at one after the other; what is known of them so far."""

    def __init__(self, runs: Sequence[CatalogRun], warm: Sequence[CatalogRun]) -> None:
        from slurm_ray_flow.blocks.clusters import cluster_of
        from slurm_ray_flow.blocks.ssh import authentication
        from slurm_ray_flow.tasks.question import Question
        from slurm_ray_flow.tasks.warm import warm_noted

        show_progress()
        self._cluster_of, self._warm_noted, self._can_ask = cluster_of, warm_noted, authentication.terminal
        self.states: dict[str, Known] = {}
        self.warm: dict[str, Warm] = {}
        self._runs, self._warm_records = runs, [run.record for run in warm]
        self.asked: Question[None] = Question(self._ask)

    def wait(self, deadline: float) -> None:
        """Until then; longer only where the user is asked for what the cluster wants to know."""
        self.asked.wait(deadline)
        if self.asked.error is not None and self.asked.unasked.wanted and self._can_ask():
            self._ask_user()

    def _ask_user(self) -> None:
        self.asked.error = None
        try:
            self._ask()
        except Exception as error:  # as in the thread
            self.asked.error = error

    def _ask(self) -> None:
        for run in self._runs:
            self.states[run.run_id] = _state(run)
        if self._warm_records:
            there = self._warm_noted(self._cluster_of(self._warm_records[0]), self._warm_records)
            self.warm = {one.run_id: one for one in there if one.idles}


class RunsQuery:
    """Looks at runs, once or again and again.

    Attributes:
        silent: the names of the clusters that did not answer in the last round, and why.
    """

    def __init__(self) -> None:
        self.silent: dict[str, str] = {}
        self._questions: dict[Place, _ClusterQuery] = {}
        self._warm_asked: set[Place] = set()
        self._warm: dict[str, Warm] = {}
        self._deadline = 0.0

    def found(self, wanted: Filter) -> list[RunRow]:
        """The newest runs that are wanted, each looked at."""
        from slurm_ray_flow.blocks import catalog

        self.silent, self._warm_asked, self._warm = {}, set(), {}
        self._deadline = 0.0
        known = catalog.runs()
        rest = (run for run in known if wanted.cluster in (None, run.cluster))
        found: list[RunRow] = []
        while some := list(itertools.islice(rest, wanted.limit - len(found))):
            found += [one for one in self._looked_at(some, known) if wanted.takes(one)]
        return found

    def _looked_at(self, some: Sequence[CatalogRun], known: Sequence[CatalogRun]) -> Iterator[RunRow]:
        fresh = [self._ask(place, some, known) for place in dict.fromkeys(map(_place, some))]
        self._deadline = self._deadline or time.monotonic() + SECONDS  # what is imported before takes its time
        for question in fresh:
            if question:
                question.wait(self._deadline)
                self._warm.update(question.warm)
        for run in some:
            yield self._shown(run)

    def _ask(self, place: Place, some: Sequence[CatalogRun], known: Sequence[CatalogRun]) -> _ClusterQuery | None:
        """Ask a cluster about those of these runs that home does not know the end of; None where nothing is asked."""
        there = [run for run in some if _place(run) == place]
        runs = [run for run in there if not _is_known_here(run)]
        of_warm = place not in self._warm_asked and any(run.warm for run in there)
        if not (runs or of_warm) or self._is_silent(place):
            return None
        warm = [run for run in known if run.warm and _place(run) == place] if of_warm else []
        if of_warm:
            self._warm_asked.add(place)
        question = self._questions[place] = _ClusterQuery(runs, warm)
        return question

    def _is_silent(self, place: Place) -> bool:
        """Whether an earlier question to it has no answer yet, or failed a moment ago."""
        before = self._questions.get(place)
        if before is None or not before.asked.why:
            return False
        ended = before.asked.ended
        return ended is None or time.monotonic() - ended < SILENT_SECONDS

    def _shown(self, run: CatalogRun) -> RunRow:
        question = self._questions.get(_place(run))
        why = question.asked.why if question else ""
        if why and (run.warm or not run.state):
            self.silent[run.cluster] = why
        states = question.states if question else {}
        state, seconds, why = _state(run) if _is_known_here(run) else states.get(run.run_id, (NOT_KNOWN, None, why))
        return RunRow(run, state, seconds, self._warm.get(run.run_id), why)


def _place(run: CatalogRun) -> Place:
    return run.kind, run.cluster, run.root


def _is_known_here(run: CatalogRun) -> bool:
    """Whether no cluster need be asked of a run: home knows its end, or it lies on this machine."""
    return bool(run.state) or run.kind == LOCAL


def _state(run: CatalogRun) -> Known:
    from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError

    try:
        state, ended = (run.state, run.ended_at) if run.state else _looked_up(run)
    except ConnectionFailed:
        raise
    except (SlurmRayFlowError, LookupError, TypeError, ValueError) as error:  # one run must not hide the others
        return NOT_KNOWN, None, getattr(error, "what", str(error))
    if ended is None and state in FINAL:
        return state, None, ""
    return state, round((ended or time.time()) - run.created, 3), ""


def _looked_up(run: CatalogRun) -> tuple[str, float | None]:
    """The state of a run whose end home does not know, and when it ended."""
    if run.kind == LOCAL:
        from slurm_ray_flow.blocks import run_facts

        status = run_facts.status_of(run_facts.read_here(run.record))
        return status.state.value, status.ended_at
    from slurm_ray_flow.interface.handle import Handle

    state, ended = Handle[Any](run.run_id).status_and_end()
    return state.value, ended


COLUMNS = ["RUN", "FUNCTION", "CLUSTER", "STATE", "STARTED", "TOOK"]
WATCH_SECONDS = 2.0
AROUND = 3
"""Lines of a live table that are no runs."""
State = Literal[
    "preparing", "waiting", "starting", "running", "warm", "succeeded", "failed", "cancelled", "lost", "active"
]


def runs(
    *,
    limit: Annotated[int, Parameter(name=["--limit", "--last", "-n"])] = 20,
    cluster: Annotated[str | None, A_CLUSTER] = None,
    state: Annotated[tuple[State, ...], Parameter(negative="", show_default=False)] = (),
    watch: Annotated[bool, Switch] = False,
    rebuild: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """List the runs that were started from this machine, the newest first.

    Clusters are asked at once, for eight seconds at most; the state of a run on one that does not answer is not known.

    Examples:
        srf runs

        srf runs --last 5 --cluster curnagl

        srf runs --state active --watch

        srf runs --state failed --json

    Args:
        limit: How many.
        cluster: Only those on this cluster.
        state: Only those in this state; "active" is all that have not ended. May be given again.
        watch: A live table, until Ctrl-C; without a terminal, the table again whenever a state has changed.
        rebuild: Make the catalog that the list is read from anew, from what home has noted of each run.
    """
    if rebuild:
        from slurm_ray_flow.blocks import catalog

        catalog.rebuild()
    wanted = Filter(max(limit, 0), cluster, state)
    if watch:
        _watch(wanted, json)
    else:
        looking = RunsQuery()
        _write(looking.found(wanted), wanted, json)
        _tell_silent(looking.silent)


# ---- how it is written


def _write(found: list[RunRow], wanted: Filter, json: bool) -> None:
    if json:
        print_json([_values(one) for one in found])
    elif found:
        print_table(COLUMNS, [_row(one) for one in found], STATES)
    else:
        print_text(_nothing(wanted))


def _tell_silent(silent: dict[str, str]) -> None:
    for one in silent.items():
        tell(_silent_text(one))


def _silent_text(silent: tuple[str, str]) -> str:
    cluster, why = silent
    return f"{cluster} does not say how its runs are: {why}"


def _nothing(wanted: Filter) -> str:
    if wanted.cluster or wanted.states:
        return "No such runs."
    return "No runs yet. Decorate a function with @slurm_ray_flow and call it."


def _values(one: RunRow) -> dict[str, Any]:
    known = {**dataclasses.asdict(one.run.record), "state": one.word, "seconds": one.seconds, "why": one.why}
    return {**known, "warm": one.warm.to_json() if one.warm else None}


def _row(one: RunRow) -> list[str]:
    from slurm_ray_flow.core.quantities import format_duration

    run = one.run
    started = datetime.datetime.fromtimestamp(run.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    took = "" if one.seconds is None else format_duration(one.seconds)
    state = f"warm, {one.warm.cost.an_hour}" if one.warm else one.state
    shown = f"{state}, try {run.tries}" if run.tries > 1 else state
    return [run.run_id[:8], run.function, run.cluster, shown, started, took]


# ---- again and again


def _watch(wanted: Filter, json: bool) -> None:
    looking = RunsQuery()
    snapshots = _snapshots(looking, wanted)
    if sys.stdout.isatty() and not json:
        _live(looking, snapshots, wanted)
        return
    before: list[tuple[str, str]] | None = None
    silent: dict[str, str] = {}
    for found in snapshots:
        _tell_silent({name: why for name, why in looking.silent.items() if name not in silent})
        silent = looking.silent
        now = [(one.run.run_id, one.word) for one in found]
        if now == before:
            continue
        if json:
            print_json([_values(one) for one in found], compact=True)
        else:
            print_text("" if before is not None else f"Each change, until Ctrl-C. {time.strftime('%H:%M:%S')}")
            _write(found, wanted, json=False)
        sys.stdout.flush()
        before = now


def _snapshots(looking: RunsQuery, wanted: Filter) -> Iterator[list[RunRow]]:
    """Without an end. Of a scheduler, all runs of a process ask one question at a time, and seldom."""
    while True:
        yield looking.found(wanted)
        time.sleep(WATCH_SECONDS)


def _live(looking: RunsQuery, snapshots: Iterator[list[RunRow]], wanted: Filter) -> None:
    from rich.live import Live

    screen = console()
    with Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:
        for found in snapshots:
            rows = max(screen.height - AROUND - len(looking.silent), 1)
            live.update(_drawn(found[:rows], wanted, looking.silent), refresh=True)


def _drawn(found: list[RunRow], wanted: Filter, silent: dict[str, str]) -> Table:
    drawn = table(COLUMNS, [_row(one) for one in found], STATES)
    nothing = "" if found else f"{_nothing(wanted)}  "
    lines = [f"{nothing}{time.strftime('%H:%M:%S')}, Ctrl-C ends", *map(_silent_text, silent.items())]
    drawn.caption = plain("\n".join(lines))
    drawn.caption_justify = "left"
    return drawn


Follow = Annotated[bool, Parameter(name=["--follow", "-f"], negative="", show_default=False)]


def logs(run: Annotated[str, A_RUN], *, follow: Follow = False, json: Json = False) -> None:
    """Write what a run's function printed.

    Examples:
        srf logs 3f2a

        srf logs 3f2a --follow

    Args:
        run: The run's id, or the start of it.
        follow: Go on until the run ends.
    """
    from slurm_ray_flow.interface.handle import Handle

    handle = Handle.attach(run)
    if json:
        lines = list(handle.logs(follow=follow))
        print_json({"run_id": handle.run_id, "state": handle.status().value, "lines": lines})
        return
    for line in handle.logs(follow=follow):
        sys.stdout.write(line + "\n")
        if follow:
            sys.stdout.flush()


def attach(run: Annotated[str, A_RUN], *, json: Json = False) -> None:
    """Follow a run to its end: its log, then its value.

    The run goes on when you leave with Ctrl-C.

    Examples:
        srf attach 3f2a

    Args:
        run: The run's id, or the start of it.
    """
    from slurm_ray_flow.interface.handle import Handle

    handle = Handle.attach(run)
    try:
        if not json:
            logs(handle.run_id, follow=True)
        value = handle.result()
    except BaseException as error:
        if not (isinstance(error, Exception) or is_from_the_cluster(error)):
            if isinstance(error, KeyboardInterrupt):
                sys.stderr.write(f"\nThe run goes on; `srf attach {handle.run_id[:8]}` finds it again.\n")
            raise
        _end_with(handle, error, json)
    if json:
        print_json({"run_id": handle.run_id, "state": handle.status().value, "value": as_json(value)})
    else:
        print_text(f"run {handle.run_id[:8]} gave {value!r}")


def cancel(run: Annotated[str, A_RUN], *, json: Json = False) -> None:
    """End a run, and verify that it is gone.

    Examples:
        srf cancel 3f2a

    Args:
        run: The run's id, or the start of it.
    """
    from slurm_ray_flow.interface.handle import Handle

    handle = Handle.attach(run)
    ended = handle.cancel()
    if json:
        print_json({"run_id": handle.run_id, "cancelled": ended, "state": handle.status().value})
    else:
        print_text(f"run {handle.run_id[:8]} " + ("is cancelled" if ended else f"had ended: {handle.status().value}"))


def _end_with(handle: Handle[Any], error: BaseException, json: bool) -> NoReturn:
    """The run gave an exception: that is this command's end too."""
    from slurm_ray_flow.core.errors import SlurmRayFlowError

    if json:
        print_json({"run_id": handle.run_id, "state": handle.status().value, "error": describe_error(error)})
        sys.exit(1)
    if isinstance(error, SlurmRayFlowError):
        raise error
    print_exception(error)
    sys.exit(1)
