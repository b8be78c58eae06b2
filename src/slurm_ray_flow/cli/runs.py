"""The verbs that look at runs, and end them."""

from __future__ import annotations

import dataclasses
import datetime
import sys
from typing import Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.output import print_json, print_table, print_text

Json = Annotated[bool, Parameter(name="--json", negative="", help="Write JSON.")]


def list_runs(*, limit: int = 20, as_json: Json = False) -> None:
    """List the runs that were started from this machine, the newest first.

    Args:
        limit: How many.
    """
    from itertools import islice

    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.interface.handle import Handle

    found = [(record, Handle[Any](record.run_id).status()) for record in islice(store.records(), limit)]
    if as_json:
        print_json([{**dataclasses.asdict(record), "state": state.value} for record, state in found])
        return
    if not found:
        print_text("No runs yet. Decorate a function with @slurm_ray_flow and call it.")
        return
    rows = [
        [record.run_id[:8], record.function, record.cluster, state.value, _when(record.created)]
        for record, state in found
    ]
    print_table(["RUN", "FUNCTION", "CLUSTER", "STATE", "STARTED"], rows)


def logs(run: str, *, follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative="")] = False) -> None:
    """Write what a run's function printed.

    Args:
        run: The run's id, or the start of it.
        follow: Go on until the run ends.
    """
    from slurm_ray_flow.interface.handle import Handle

    for line in Handle.attach(run).logs(follow=follow):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def attach(run: str, *, as_json: Json = False) -> None:
    """Follow a run to its end: its log, then its value. The run goes on when you leave with Ctrl-C.

    Args:
        run: The run's id, or the start of it.
    """
    from slurm_ray_flow.core.errors import SlurmRayFlowError
    from slurm_ray_flow.interface.handle import Handle

    handle = Handle.attach(run)
    if not as_json:
        logs(handle.run_id, follow=True)
    try:
        value = handle.result()
    except SlurmRayFlowError:
        raise
    except Exception as error:
        _show_exception(handle, error, as_json)
        sys.exit(1)
    if as_json:
        print_json({"run_id": handle.run_id, "state": handle.status().value, "value": repr(value)})
    else:
        print_text(f"run {handle.run_id[:8]} gave {value!r}")


def cancel(run: str, *, as_json: Json = False) -> None:
    """End a run, and verify that it is gone.

    Args:
        run: The run's id, or the start of it.
    """
    from slurm_ray_flow.interface.handle import Handle

    handle = Handle.attach(run)
    ended = handle.cancel()
    if as_json:
        print_json({"run_id": handle.run_id, "cancelled": ended, "state": handle.status().value})
    else:
        print_text(f"run {handle.run_id[:8]} " + ("is cancelled" if ended else f"had ended: {handle.status().value}"))


def _show_exception(handle: Any, error: Exception, as_json: bool) -> None:
    if as_json:
        print_json({"run_id": handle.run_id, "state": handle.status().value, "exception": repr(error)})
        return
    for note in getattr(error, "__notes__", []):
        print_text(note)
    print_text(f"run {handle.run_id[:8]} raised {type(error).__name__}: {error}")


def _when(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
