"""Ends our server."""

from __future__ import annotations

from slurm_ray_flow.blocks.processes import end, wait_gone
from slurm_ray_flow.blocks.server.address import state_file, state_in
from slurm_ray_flow.blocks.server.files import locked, server_files
from slurm_ray_flow.core.errors import ServerError

PATIENCE = 20.0
"""Seconds for the supervisor, which gives the server ten to close its database."""


def stop_server() -> bool:
    """Ends the server and its supervisor, and makes sure; False where none was running. Takes at most 40 s.

    Where another host has the server, this host's tunnel to it is what ends.

    Raises:
        ServerError: a process can't be ended.
    """
    files = server_files()
    path = state_file(files)
    if not path.exists():
        return False
    with locked(files):
        state = state_in(path)
        path.unlink(missing_ok=True)
        if state is None or (wait_gone(state.server, 0) and wait_gone(state.supervisor, 0)):
            return False
        gone = end(state.supervisor, patience=PATIENCE), end(state.server, patience=10.0)
    if not all(gone):
        raise ServerError(
            "The Prefect server could not be ended.",
            where=f"processes {state.supervisor_pid} and {state.pid}",
            advice="Look at them with ps, and end them by hand.",
        )
    return True
