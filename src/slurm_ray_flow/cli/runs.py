"""The verbs that look at runs, and end them."""

from __future__ import annotations

import dataclasses
import datetime
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import Parameter

from slurm_ray_flow.cli.output import (
    Json,
    as_json,
    describe_error,
    print_exception,
    print_json,
    print_table,
    print_text,
)

if TYPE_CHECKING:
    from slurm_ray_flow.core.run import RunRecord
    from slurm_ray_flow.core.warm import Warm
    from slurm_ray_flow.interface.handle import Handle

Follow = Annotated[bool, Parameter(name=["--follow", "-f"], negative="", show_default=False)]


def list_runs(*, limit: Annotated[int, Parameter(name=["--limit", "-n"])] = 20, json: Json = False) -> None:
    """List the runs that were started from this machine, the newest first.

    Args:
        limit: How many.
    """
    from itertools import islice

    from slurm_ray_flow.blocks import store

    silent: set[str] = set()
    found = [(record, *_look(record, silent)) for record in islice(store.records(), max(limit, 0))]
    warm = _warm([record for record, *_ in found])
    if json:
        print_json([_as_json(record, state, seconds, warm.get(record.run_id)) for record, state, seconds in found])
    elif found:
        columns = ["RUN", "FUNCTION", "CLUSTER", "STATE", "STARTED", "TOOK"]
        print_table(columns, [_row(record, _shown(record, state, warm), seconds) for record, state, seconds in found])
    else:
        print_text("No runs yet. Decorate a function with @slurm_ray_flow and call it.")


def logs(run: str, *, follow: Follow = False) -> None:
    """Write what a run's function printed.

    Args:
        run: The run's id, or the start of it.
        follow: Go on until the run ends.
    """
    from slurm_ray_flow.interface.handle import Handle

    for line in Handle.attach(run).logs(follow=follow):
        sys.stdout.write(line + "\n")
        if follow:
            sys.stdout.flush()


def attach(run: str, *, json: Json = False) -> None:
    """Follow a run to its end: its log, then its value. The run goes on when you leave with Ctrl-C.

    Args:
        run: The run's id, or the start of it.
    """
    from slurm_ray_flow.interface.handle import Handle

    handle = Handle.attach(run)
    try:
        if not json:
            logs(handle.run_id, follow=True)
        value = handle.result()
    except KeyboardInterrupt:
        sys.stderr.write(f"\nThe run goes on; `srf attach {handle.run_id[:8]}` finds it again.\n")
        raise
    except Exception as error:
        _end_with(handle, error, json)
    if json:
        print_json({"run_id": handle.run_id, "state": handle.status().value, "value": as_json(value)})
    else:
        print_text(f"run {handle.run_id[:8]} gave {value!r}")


def cancel(run: str, *, json: Json = False) -> None:
    """End a run, and verify that it is gone.

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


def _end_with(handle: Handle[Any], error: Exception, json: bool) -> NoReturn:
    """The run gave an exception: that is this command's end too."""
    from slurm_ray_flow.core.errors import SlurmRayFlowError

    if json:
        print_json({"run_id": handle.run_id, "state": handle.status().value, "error": describe_error(error)})
        sys.exit(1)
    if isinstance(error, SlurmRayFlowError):
        raise error
    print_exception(error)
    sys.exit(1)


def _look(record: RunRecord, silent: set[str]) -> tuple[str, float | None]:
    """A run's state, and how long it took or has been under way; None where nobody knows.

    Args:
        record: the run.
        silent: the clusters that did not answer, which are not asked again; one more may be added.
    """
    from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError
    from slurm_ray_flow.interface.handle import Handle

    if record.cluster in silent and not record.ended:
        return "not known", None
    try:
        state, ended = Handle[Any](record.run_id).status_and_end()
    except SlurmRayFlowError as error:  # one cluster that does not answer must not hide the runs of the others
        if isinstance(error, ConnectionFailed):
            silent.add(record.cluster)
        return "not known", None
    if ended is None and state.final:
        return state.value, None
    return state.value, round((ended or time.time()) - record.created, 3)


def _warm(records: list[RunRecord]) -> dict[str, Warm]:
    """The allocations that idle, by the runs that they were got for."""
    from slurm_ray_flow.tasks.release import warm_everywhere

    if not any(record.warm for record in records):
        return {}
    return {one.run_id: one for one, _ in warm_everywhere(records, lambda _: None) if one.idles}


def _as_json(record: RunRecord, state: str, seconds: float | None, warm: Warm | None) -> dict[str, Any]:
    known = {**dataclasses.asdict(record), "state": "warm" if warm else state, "seconds": seconds}
    return {**known, "warm": warm.to_json() if warm else None}


def _shown(record: RunRecord, state: str, warm: dict[str, Warm]) -> str:
    one = warm.get(record.run_id)
    return f"warm, {one.cost.an_hour}" if one else state


def _row(record: RunRecord, state: str, seconds: float | None) -> list[str]:
    from slurm_ray_flow.core.quantities import format_duration

    started = datetime.datetime.fromtimestamp(record.created).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    took = "" if seconds is None else format_duration(seconds)
    shown = f"{state}, try {record.tries}" if record.tries > 1 else state
    return [record.run_id[:8], record.function, record.cluster, shown, started, took]
