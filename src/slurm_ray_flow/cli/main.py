"""The `srf` command."""

from __future__ import annotations

import sys

import cyclopts

from slurm_ray_flow import __version__
from slurm_ray_flow.cli import runs, server, start
from slurm_ray_flow.cli.output import print_error
from slurm_ray_flow.core.errors import SlurmRayFlowError

app = cyclopts.App(
    name="srf",
    help="Run Python functions on clusters, watch them, and bring their values home.",
    version=__version__,
    version_flags=["--version"],
)
for command in (start.run, runs.list_runs, runs.logs, runs.attach, runs.cancel, server.up, server.status, server.down):
    app.command(command, name="runs" if command is runs.list_runs else None)


def main() -> None:
    """Run the command; an error of ours is a message and exit code 1, not a traceback."""
    try:
        app()
    except SlurmRayFlowError as error:
        print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)


if __name__ == "__main__":
    main()
