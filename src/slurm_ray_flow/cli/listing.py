"""`srf runs`: the runs that were started from this machine, once or again and again."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from slurm_ray_flow.cli.output import STATES, Json, Switch, console, print_json, print_table, print_text, table

if TYPE_CHECKING:
    from rich.table import Table

    from slurm_ray_flow.core.run import RunRecord
    from slurm_ray_flow.core.warm import Warm

COLUMNS = ["RUN", "FUNCTION", "CLUSTER", "STATE", "STARTED", "TOOK"]
WATCH_SECONDS = 2.0
SILENT_SECONDS = 60.0
"""For how long a cluster that did not answer is not asked again."""
AROUND = 3
"""Lines of a live table that are no runs."""
FINAL = ("succeeded", "failed", "cancelled", "lost")
State = Literal[
    "preparing", "waiting", "starting", "running", "warm", "succeeded", "failed", "cancelled", "lost", "active"
]


@dataclasses.dataclass(frozen=True)
class Shown:
    """One line: a run, its state, how long it took or has been under way, and what it keeps warm."""

    record: RunRecord
    state: str
    seconds: float | None
    warm: Warm | None = None

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

    def takes(self, one: Shown) -> bool:
        """Whether a run's state is one that is wanted."""
        return not self.states or one.word in self.states or ("active" in self.states and one.word not in FINAL)


def runs(
    *,
    limit: Annotated[int, Parameter(name=["--limit", "--last", "-n"])] = 20,
    cluster: str | None = None,
    state: Annotated[tuple[State, ...], Parameter(negative="", show_default=False)] = (),
    watch: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """List the runs that were started from this machine, the newest first.

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
    """
    wanted = Filter(max(limit, 0), cluster, state)
    if watch:
        _watch(wanted, json)
    else:
        _write(_found(wanted, {}), wanted, json)


# ---- what there is


def _found(wanted: Filter, silent: dict[str, float]) -> list[Shown]:
    """The newest runs that are wanted, each looked at.

    Args:
        wanted: which.
        silent: clusters that did not answer, and until when they are not asked; gets more of them.
    """
    from slurm_ray_flow.blocks import store

    found: list[Shown] = []
    if wanted.limit:
        warm: dict[str, Warm] | None = None
        for record in store.records():
            if wanted.cluster not in (None, record.cluster):
                continue
            if record.warm and warm is None:
                warm = _warm(list(store.records()))
            one = Shown(record, *_look(record, silent), (warm or {}).get(record.run_id))
            found += [one] if wanted.takes(one) else []
            if len(found) == wanted.limit:
                break
    return found


def _look(record: RunRecord, silent: dict[str, float]) -> tuple[str, float | None]:
    """A run's state, and how long it took or has been under way; None where nobody knows."""
    from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError
    from slurm_ray_flow.interface.handle import Handle

    if silent.get(record.cluster, 0.0) > time.monotonic() and not record.ended:
        return "not known", None
    try:
        state, ended = Handle[Any](record.run_id).status_and_end()
    except SlurmRayFlowError as error:  # one cluster that does not answer must not hide the runs of the others
        if isinstance(error, ConnectionFailed):
            silent[record.cluster] = time.monotonic() + SILENT_SECONDS
        return "not known", None
    if ended is None and state.final:
        return state.value, None
    return state.value, round((ended or time.time()) - record.created, 3)


def _warm(records: list[RunRecord]) -> dict[str, Warm]:
    """The allocations that idle, by the runs that they were got for."""
    from slurm_ray_flow.tasks.release import warm_everywhere

    return {one.run_id: one for one, _ in warm_everywhere(records, lambda _: None) if one.idles}


# ---- how it is written


def _write(found: list[Shown], wanted: Filter, json: bool) -> None:
    if json:
        print_json([_values(one) for one in found])
    elif found:
        print_table(COLUMNS, [_row(one) for one in found], STATES)
    else:
        print_text(_nothing(wanted))


def _nothing(wanted: Filter) -> str:
    if wanted.cluster or wanted.states:
        return "No such runs."
    return "No runs yet. Decorate a function with @slurm_ray_flow and call it."


def _values(one: Shown) -> dict[str, Any]:
    known = {**dataclasses.asdict(one.record), "state": one.word, "seconds": one.seconds}
    return {**known, "warm": one.warm.to_json() if one.warm else None}


def _row(one: Shown) -> list[str]:
    from slurm_ray_flow.core.quantities import format_duration

    record = one.record
    started = datetime.datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    took = "" if one.seconds is None else format_duration(one.seconds)
    state = f"warm, {one.warm.cost.an_hour}" if one.warm else one.state
    shown = f"{state}, try {record.tries}" if record.tries > 1 else state
    return [record.run_id[:8], record.function, record.cluster, shown, started, took]


# ---- again and again


def _watch(wanted: Filter, json: bool) -> None:
    snapshots = _snapshots(wanted)
    if sys.stdout.isatty() and not json:
        _live(snapshots, wanted)
        return
    before: list[tuple[str, str]] | None = None
    for found in snapshots:
        now = [(one.record.run_id, one.word) for one in found]
        if now == before:
            continue
        if json:
            print_json([_values(one) for one in found], compact=True)
        else:
            print_text("" if before is not None else f"Each change, until Ctrl-C. {time.strftime('%H:%M:%S')}")
            _write(found, wanted, json=False)
        sys.stdout.flush()
        before = now


def _snapshots(wanted: Filter) -> Iterator[list[Shown]]:
    """Without an end. Of a scheduler, all runs of a process ask one question at a time, and seldom."""
    silent: dict[str, float] = {}
    while True:
        yield _found(wanted, silent)
        time.sleep(WATCH_SECONDS)


def _live(snapshots: Iterator[list[Shown]], wanted: Filter) -> None:
    from rich.live import Live

    screen = console()
    with Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:
        for found in snapshots:
            live.update(_drawn(found[: max(screen.height - AROUND, 1)], wanted), refresh=True)


def _drawn(found: list[Shown], wanted: Filter) -> Table:
    drawn = table(COLUMNS, [_row(one) for one in found], STATES)
    nothing = "" if found else f"{_nothing(wanted)}  "
    drawn.caption = f"{nothing}{time.strftime('%H:%M:%S')}, Ctrl-C ends"
    drawn.caption_justify = "left"
    return drawn
