"""The `srf` command."""

from __future__ import annotations

import os
import sys

import cyclopts

from slurm_ray_flow import __version__
from slurm_ray_flow.cli import check, clean, clusters, dashboard, queue, release, runs, server, start, trust
from slurm_ray_flow.cli.output import print_error
from slurm_ray_flow.core.errors import OptionError, SlurmRayFlowError, UnknownRunError
from slurm_ray_flow.core.progress import use_reporter
from slurm_ray_flow.interface.progress import terminal_reporter

_EXIT_CODES = (
    "Exit codes: 0 all is well; 1 the function raised, or the run or the command failed, or no server answers; "
    "2 the command line is wrong, or there is no such run; 130 Ctrl-C."
)

app = cyclopts.App(
    name="srf",
    help="Run Python functions on clusters, watch them, and bring their values home.",
    help_epilogue=_EXIT_CODES,
    version=__version__,
    version_flags=["--version"],
)
app["--version"].help = "Show the version and exit."
app["--help"].help = "Show this message and exit; after a command's name, that command's."
for command in (
    *(start.run, runs.list_runs, runs.logs, runs.attach, runs.cancel, release.release, dashboard.dashboard),
    *(clusters.init, clusters.clusters, check.check, queue.queue, trust.trust, clean.clean),
    *(server.up, server.status, server.down),
):
    app.command(command, name="runs" if command is runs.list_runs else None)


def main() -> None:
    """Run the command; an error of ours is a message and an exit code, not a traceback."""
    use_reporter(terminal_reporter())  # so that a host that can't be reached is not waited for in silence
    try:
        app()
        sys.stdout.flush()
    except SlurmRayFlowError as error:
        print_error(error)
        sys.exit(2 if isinstance(error, OptionError | UnknownRunError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read us has gone (`| head`); the interpreter's last flush must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    finally:
        _leave_soon()


def _leave_soon() -> None:
    """Prefect's background services may hold a process back for ever at its end."""
    if "prefect" in sys.modules:
        from slurm_ray_flow.interface.leaving import bound_the_end

        bound_the_end()


if __name__ == "__main__":
    main()
