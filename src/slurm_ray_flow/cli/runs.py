"""The verbs that look at runs, and end them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from cyclopts import Parameter

from slurm_ray_flow.cli.offered import A_RUN
from slurm_ray_flow.cli.output import (
    Json,
    as_json,
    describe_error,
    print_exception,
    print_json,
    print_text,
)
from slurm_ray_flow.core.outcome import is_from_the_cluster

if TYPE_CHECKING:
    from slurm_ray_flow.interface.handle import Handle

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
