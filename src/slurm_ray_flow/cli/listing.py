"""`srf runs`: the runs that were started from this machine, once or again and again."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from slurm_ray_flow.cli.looking import Filter, Looking, Shown
from slurm_ray_flow.cli.offered import A_CLUSTER
from slurm_ray_flow.cli.output import STATES, Json, Switch, console, print_json, print_table, print_text, table, tell
from slurm_ray_flow.core.plain import plain

if TYPE_CHECKING:
    from rich.table import Table

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
    """
    wanted = Filter(max(limit, 0), cluster, state)
    if watch:
        _watch(wanted, json)
    else:
        looking = Looking()
        _write(looking.found(wanted), wanted, json)
        _tell_silent(looking.silent)


# ---- how it is written


def _write(found: list[Shown], wanted: Filter, json: bool) -> None:
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


def _values(one: Shown) -> dict[str, Any]:
    known = {**dataclasses.asdict(one.record), "state": one.word, "seconds": one.seconds, "why": one.why}
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
    looking = Looking()
    snapshots = _snapshots(looking, wanted)
    if sys.stdout.isatty() and not json:
        _live(looking, snapshots, wanted)
        return
    before: list[tuple[str, str]] | None = None
    silent: dict[str, str] = {}
    for found in snapshots:
        _tell_silent({name: why for name, why in looking.silent.items() if name not in silent})
        silent = looking.silent
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


def _snapshots(looking: Looking, wanted: Filter) -> Iterator[list[Shown]]:
    """Without an end. Of a scheduler, all runs of a process ask one question at a time, and seldom."""
    while True:
        yield looking.found(wanted)
        time.sleep(WATCH_SECONDS)


def _live(looking: Looking, snapshots: Iterator[list[Shown]], wanted: Filter) -> None:
    from rich.live import Live

    screen = console()
    with Live(console=screen, auto_refresh=False, vertical_overflow="crop") as live:
        for found in snapshots:
            rows = max(screen.height - AROUND - len(looking.silent), 1)
            live.update(_drawn(found[:rows], wanted, looking.silent), refresh=True)


def _drawn(found: list[Shown], wanted: Filter, silent: dict[str, str]) -> Table:
    drawn = table(COLUMNS, [_row(one) for one in found], STATES)
    nothing = "" if found else f"{_nothing(wanted)}  "
    lines = [f"{nothing}{time.strftime('%H:%M:%S')}, Ctrl-C ends", *map(_silent_text, silent.items())]
    drawn.caption = plain("\n".join(lines))
    drawn.caption_justify = "left"
    return drawn
