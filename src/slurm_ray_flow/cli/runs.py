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
"""Seconds that all clusters together have to answer."""
SILENT_SECONDS = 60.0
"""Seconds that a cluster is not asked again after it could not be asked."""
NOT_KNOWN = "not known"
LOCAL = "local-machine"
"""The kind of cluster whose runs are known without asking: their folders are this machine's."""
FINAL = ("succeeded", "failed", "cancelled", "lost")
KnownState = tuple[str, "float | None", str]
"""A run's state, its duration until its end or now, and the reason where these are not known."""
ClusterKey = tuple[str, str, str]
"""What tells clusters apart in the records of runs: kind, name, root folder."""


@dataclasses.dataclass(frozen=True)
class RunRow:
    """One line: a run, its state, its duration until its end or now, and its warm allocation.

    Attributes:
        why: the reason that the state is not known; "" where it is.
    """

    run: CatalogRun
    state: str
    seconds: float | None
    warm: Warm | None = None
    why: str = ""

    @property
    def word(self) -> str:
        """The state in words, by which runs are filtered."""
        return "warm" if self.warm else self.state


@dataclasses.dataclass(frozen=True)
class Filter:
    """The criteria for the runs that are shown."""

    limit: int
    cluster: str | None
    states: tuple[str, ...]

    def matches(self, row: RunRow) -> bool:
        """Whether a run's state is among the wanted ones."""
        return not self.states or row.word in self.states or ("active" in self.states and row.word not in FINAL)


class _ClusterQuery:
    """A question about the runs of one cluster, and the states that are known so far."""

    def __init__(self, runs: Sequence[CatalogRun], warm: Sequence[CatalogRun]) -> None:
        from slurm_ray_flow.blocks.clusters import cluster_of
        from slurm_ray_flow.blocks.ssh import authentication
        from slurm_ray_flow.tasks.question import Question
        from slurm_ray_flow.tasks.warm import warm_noted

        show_progress()
        self._cluster_of, self._warm_noted, self._can_ask = cluster_of, warm_noted, authentication.terminal
        self.states: dict[str, KnownState] = {}
        self.warm: dict[str, Warm] = {}
        self._runs, self._warm_records = runs, [run.record for run in warm]
        self.question: Question[None] = Question(self._ask_cluster)

    def wait(self, deadline: float) -> None:
        """Wait for the answer; beyond the deadline only to ask the user for a password or the like."""
        self.question.wait(deadline)
        if self.question.error is not None and self.question.unasked.wanted and self._can_ask():
            self._ask_user()

    def _ask_user(self) -> None:
        self.question.error = None
        try:
            self._ask_cluster()
        except Exception as error:  # as in the thread
            self.question.error = error

    def _ask_cluster(self) -> None:
        for run in self._runs:
            self.states[run.run_id] = _state_of(run)
        if self._warm_records:
            alive = self._warm_noted(self._cluster_of(self._warm_records[0]), self._warm_records)
            self.warm = {warm.run_id: warm for warm in alive if warm.idles}


class RunsQuery:
    """Reads the states of runs, once or repeatedly.

    Attributes:
        silent: the names of the clusters that did not answer in the last round, and the reasons.
    """

    def __init__(self) -> None:
        self.silent: dict[str, str] = {}
        self._queries: dict[ClusterKey, _ClusterQuery] = {}
        self._warm_asked: set[ClusterKey] = set()
        self._warm: dict[str, Warm] = {}
        self._deadline = 0.0

    def matching_rows(self, criteria: Filter) -> list[RunRow]:
        """The newest runs that meet the criteria, each with its state."""
        from slurm_ray_flow.blocks import catalog

        self.silent, self._warm_asked, self._warm = {}, set(), {}
        self._deadline = 0.0
        listed = catalog.runs()
        candidates = (run for run in listed if criteria.cluster in (None, run.cluster))
        rows: list[RunRow] = []
        while batch := list(itertools.islice(candidates, criteria.limit - len(rows))):
            rows += [row for row in self._rows_of(batch, listed) if criteria.matches(row)]
        return rows

    def _rows_of(self, batch: Sequence[CatalogRun], listed: Sequence[CatalogRun]) -> Iterator[RunRow]:
        queries = [self._ask(key, batch, listed) for key in dict.fromkeys(map(_cluster_key, batch))]
        self._deadline = self._deadline or time.monotonic() + SECONDS  # not before: the imports take their time
        for query in queries:
            if query:
                query.wait(self._deadline)
                self._warm.update(query.warm)
        for run in batch:
            yield self._row_of(run)

    def _ask(self, key: ClusterKey, batch: Sequence[CatalogRun], listed: Sequence[CatalogRun]) -> _ClusterQuery | None:
        """Ask a cluster about the runs of a batch whose end home does not know; None where nothing is asked."""
        present = [run for run in batch if _cluster_key(run) == key]
        runs = [run for run in present if not _is_known_here(run)]
        asks_warm = key not in self._warm_asked and any(run.warm for run in present)
        if not (runs or asks_warm) or self._is_silent(key):
            return None
        warm = [run for run in listed if run.warm and _cluster_key(run) == key] if asks_warm else []
        if asks_warm:
            self._warm_asked.add(key)
        query = self._queries[key] = _ClusterQuery(runs, warm)
        return query

    def _is_silent(self, key: ClusterKey) -> bool:
        """Whether an earlier question to the cluster has no answer yet, or failed a moment ago."""
        earlier = self._queries.get(key)
        if earlier is None or not earlier.question.why:
            return False
        ended = earlier.question.ended
        return ended is None or time.monotonic() - ended < SILENT_SECONDS

    def _row_of(self, run: CatalogRun) -> RunRow:
        query = self._queries.get(_cluster_key(run))
        why = query.question.why if query else ""
        if why and (run.warm or not run.state):
            self.silent[run.cluster] = why
        states = query.states if query else {}
        state, seconds, why = _state_of(run) if _is_known_here(run) else states.get(run.run_id, (NOT_KNOWN, None, why))
        return RunRow(run, state, seconds, self._warm.get(run.run_id), why)


def _cluster_key(run: CatalogRun) -> ClusterKey:
    return run.kind, run.cluster, run.root


def _is_known_here(run: CatalogRun) -> bool:
    """Whether home knows the state of a run by itself: it knows its end, or the run is on this machine."""
    return bool(run.state) or run.kind == LOCAL


def _state_of(run: CatalogRun) -> KnownState:
    from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError

    try:
        state, ended = (run.state, run.ended_at) if run.state else _look_up(run)
    except ConnectionFailed:
        raise
    except (SlurmRayFlowError, LookupError, TypeError, ValueError) as error:  # one run must not hide the others
        return NOT_KNOWN, None, getattr(error, "what", str(error))
    if ended is None and state in FINAL:
        return state, None, ""
    return state, round((ended or time.time()) - run.created, 3), ""


def _look_up(run: CatalogRun) -> tuple[str, float | None]:
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
OTHER_LINES = 3
"""The lines of a live table besides the runs."""
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
    criteria = Filter(max(limit, 0), cluster, state)
    if watch:
        _watch(criteria, json)
    else:
        query = RunsQuery()
        _print_rows(query.matching_rows(criteria), criteria, json)
        _tell_silent(query.silent)


# ---- output


def _print_rows(rows: list[RunRow], criteria: Filter, json: bool) -> None:
    if json:
        print_json([_row_json(row) for row in rows])
    elif rows:
        print_table(COLUMNS, [_cells(row) for row in rows], STATES)
    else:
        print_text(_no_runs_text(criteria))


def _tell_silent(silent: dict[str, str]) -> None:
    for silence in silent.items():
        tell(_silent_text(silence))


def _silent_text(silent: tuple[str, str]) -> str:
    cluster, why = silent
    return f"{cluster} does not say how its runs are: {why}"


def _no_runs_text(criteria: Filter) -> str:
    if criteria.cluster or criteria.states:
        return "No such runs."
    return "No runs yet. Decorate a function with @slurm_ray_flow and call it."


def _row_json(row: RunRow) -> dict[str, Any]:
    fields = {**dataclasses.asdict(row.run.record), "state": row.word, "seconds": row.seconds, "why": row.why}
    return {**fields, "warm": row.warm.to_json() if row.warm else None}


def _cells(row: RunRow) -> list[str]:
    from slurm_ray_flow.core.quantities import format_duration

    run = row.run
    started = datetime.datetime.fromtimestamp(run.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    took = "" if row.seconds is None else format_duration(row.seconds)
    state = f"warm, {row.warm.cost.an_hour}" if row.warm else row.state
    state_text = f"{state}, try {run.tries}" if run.tries > 1 else state
    return [run.run_id[:8], run.function, run.cluster, state_text, started, took]


# ---- --watch


def _watch(criteria: Filter, json: bool) -> None:
    query = RunsQuery()
    snapshots = _snapshots(query, criteria)
    if sys.stdout.isatty() and not json:
        _live(query, snapshots, criteria)
        return
    previous: list[tuple[str, str]] | None = None
    silent: dict[str, str] = {}
    for rows in snapshots:
        _tell_silent({name: why for name, why in query.silent.items() if name not in silent})
        silent = query.silent
        present = [(row.run.run_id, row.word) for row in rows]
        if present == previous:
            continue
        if json:
            print_json([_row_json(row) for row in rows], compact=True)
        else:
            print_text("" if previous is not None else f"Each change, until Ctrl-C. {time.strftime('%H:%M:%S')}")
            _print_rows(rows, criteria, json=False)
        sys.stdout.flush()
        previous = present


def _snapshots(query: RunsQuery, criteria: Filter) -> Iterator[list[RunRow]]:
    """The rows every two seconds, without an end; the questions to a scheduler are fewer, and shared by all runs."""
    while True:
        yield query.matching_rows(criteria)
        time.sleep(WATCH_SECONDS)


def _live(query: RunsQuery, snapshots: Iterator[list[RunRow]], criteria: Filter) -> None:
    from rich.live import Live

    screen = console()
    with Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:
        for rows in snapshots:
            height = max(screen.height - OTHER_LINES - len(query.silent), 1)
            live.update(_live_table(rows[:height], criteria, query.silent), refresh=True)


def _live_table(rows: list[RunRow], criteria: Filter, silent: dict[str, str]) -> Table:
    drawn = table(COLUMNS, [_cells(row) for row in rows], STATES)
    nothing = "" if rows else f"{_no_runs_text(criteria)}  "
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
        _end_with_error(handle, error, json)
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


def _end_with_error(handle: Handle[Any], error: BaseException, json: bool) -> NoReturn:
    """End the command with the exception of the run."""
    from slurm_ray_flow.core.errors import SlurmRayFlowError

    if json:
        print_json({"run_id": handle.run_id, "state": handle.status().value, "error": describe_error(error)})
        sys.exit(1)
    if isinstance(error, SlurmRayFlowError):
        raise error
    print_exception(error)
    sys.exit(1)
