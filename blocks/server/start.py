"""The search for the Prefect server to use, its start and its end."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable

from slurm_ray_flow.blocks import processes
from slurm_ray_flow.blocks.processes import Process, alive, end, identify, wait_gone
from slurm_ray_flow.blocks.server import client
from slurm_ray_flow.blocks.server.address import (
    BEATS_WITHIN,
    ServerAddress,
    ServerState,
    read_state,
    server_alive,
    server_elsewhere,
    serving,
    state_file,
    state_in,
    versions,
)
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import ServerFiles, auth_string, encryption_key, locked, server_files
from slurm_ray_flow.blocks.server.settings import DATABASE_VARIABLE, checked_database
from slurm_ray_flow.core.errors import ServerError

START_SECONDS = 180.0
"""Seconds for a start; 10 are usual, but a first start on PostgreSQL makes all tables, and a machine may be busy."""
LOOK_SECONDS = 0.1
END_SECONDS = 20.0
"""Seconds for a supervisor to end its tunnel."""


def ensure_server(progress: Callable[[str], None]) -> ServerAddress:
    """The Prefect server to use: the configured one, else this package's own, which is started if it does not run.

    With a running server of our own this takes a millisecond. Of several processes at once, one starts the server.

    Args:
        progress: gets a sentence about each step that takes longer.

    Raises:
        ServerError: the server did not start (with the end of its log), or the configured server does not listen.
    """
    files = server_files()
    state = read_state(files)
    configured = client.configured_url()
    if configured and (state is None or configured != state.url):
        address = ServerAddress(configured, client.ui_url_of(configured), owned=False)
        if not server_alive(address):
            raise client.no_answer("nothing listens there")
        return address
    if ready := _usable_server(files):
        _warn_of_version(ready, progress)
        return ready.address()
    with locked(files):
        return _start(files, progress)


def _usable_server(files: ServerFiles) -> ServerState | None:
    """The running server, if it is usable; a server behind a tunnel must answer a request."""
    state = read_state(files)
    if state is None or not serving(state) or not alive(state.supervisor):
        return None
    return state if server_elsewhere(files) is None or Api(state.url).healthy() else None


def _warn_of_version(state: ServerState, progress: Callable[[str], None]) -> None:
    running, installed = (state.version, state.package or "of before this was noted"), versions()
    if running != installed:
        text = "The Prefect server that runs is Prefect {}, slurm-ray-flow {}; here is Prefect {}, slurm-ray-flow {}."
        progress(f"{text.format(*running, *installed)} `srf down` and `srf up` start it anew.")


def _start(files: ServerFiles, progress: Callable[[str], None]) -> ServerAddress:
    if ready := _usable_server(files):
        return ready.address()
    if other := server_elsewhere(files):
        if state := read_state(files):  # of a tunnel that leads nowhere
            end(state.supervisor, patience=END_SECONDS)
        progress(f"This home's Prefect server is {other.host}'s, if that lives (a wait of up to {BEATS_WITHIN:.0f} s).")
    else:
        progress("Starting the Prefect server (about 10 s, once).")
    if url := os.environ.get(DATABASE_VARIABLE, "").replace("sqlite", ""):
        checked_database(url)  # an error here is shown, and not only written to a log
    auth_string(files)  # made here, under the lock, and not by two processes at once
    encryption_key(files)
    began = time.monotonic()
    state = _wait_until_healthy(files, _running_or_new_supervisor(files), began + START_SECONDS)
    if state is None:
        raise _start_error(files)
    address = state.address(started=True)
    progress(f"The Prefect server runs at {address.ui_url} (started in {time.monotonic() - began:.1f} s).")
    return address


def _running_or_new_supervisor(files: ServerFiles) -> Process | None:
    """The running supervisor, or a new one."""
    state = read_state(files)
    if state is not None and alive(state.supervisor):
        return state.supervisor
    env = processes.with_cluster_passwords("PREFECT_")  # to look after runs on clusters whose program is gone
    command = [sys.executable, "-m", "slurm_ray_flow.blocks.server.supervisor"]
    return identify(processes.start(command, log=files.log, env=env, cwd=files.prefect_home))


def _wait_until_healthy(files: ServerFiles, supervisor: Process | None, deadline: float) -> ServerState | None:
    """The state of a healthy server; None after the end of its supervisor, or after the deadline."""
    while supervisor is not None and alive(supervisor) and time.monotonic() < deadline:
        state = read_state(files)
        if state is not None and state.supervisor == supervisor and serving(state) and Api(state.url).healthy():
            return state
        time.sleep(LOOK_SECONDS)
    return None


def _start_error(files: ServerFiles) -> ServerError:
    lines = files.log.read_text(errors="replace").splitlines()[-15:] if files.log.exists() else []
    if other := server_elsewhere(files):
        here = socket.gethostname()
        return ServerError(
            f"The Prefect server of this home runs on {other.host}, and {here} does not get there:\n    "
            + "\n    ".join(lines[-3:]),
            where=str(files.log),
            advice=f"Make `ssh {other.host}` work on {here} without a question, or work on {other.host}; or give "
            f"{here} a server of its own: `export SRF_HOME=~/.slurm-ray-flow-{here}`.",
        )
    return ServerError(
        "The Prefect server did not start:\n    " + "\n    ".join(lines or ["its log is empty"]),
        where=str(files.log),
        advice="`srf down` and `srf up`; or set PREFECT_API_URL to a server of your own.",
    )


PATIENCE = 20.0
"""Seconds for the supervisor, which gives the server ten to close its database."""


def stop_server() -> bool:
    """End the server and its supervisor; False if none was running. Takes at most 40 s.

    If the server runs on another host, this host's tunnel to it is ended.

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
        ended = end(state.supervisor, patience=PATIENCE), end(state.server, patience=10.0)
    if not all(ended):
        raise ServerError(
            "The Prefect server could not be ended.",
            where=f"processes {state.supervisor_pid} and {state.pid}",
            advice="Look at them with ps, and end them by hand.",
        )
    return True
