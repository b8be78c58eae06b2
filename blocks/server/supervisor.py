"""The supervisor: the process that owns the Prefect server, ends with it, and sweeps every half minute.

    python -m slurm_ray_flow.blocks.server.supervisor

Started by `ensure_server`, in a session of its own. It never imports Prefect, so that it stays small.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from slurm_ray_flow.blocks import catalog, processes
from slurm_ray_flow.blocks.clean_up import CleanUpRoot
from slurm_ray_flow.blocks.clean_up import clean_up as clean_up_place
from slurm_ray_flow.blocks.processes import Process, alive, end, identify, this_process
from slurm_ray_flow.blocks.run_facts import LOCAL
from slurm_ray_flow.blocks.server.address import (
    BEAT_SECONDS,
    BEATS_WITHIN,
    HOST,
    ServerState,
    read_state,
    server_elsewhere,
    state_file,
    state_in,
    versions,
    write_state,
)
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.automation import ensure_automation
from slurm_ray_flow.blocks.server.files import ServerFiles, alone, auth_string, make_folders, server_files
from slurm_ray_flow.blocks.server.log_in import write_landing_page
from slurm_ray_flow.blocks.server.settings import keep_copy, server_environment
from slurm_ray_flow.blocks.server.sweep import ensure_watch, orphan_slots, see_to_slots, sweep
from slurm_ray_flow.core.clean_up import DAY, KEPT_DAYS
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.remote.agent.operations import perform


def clean_up(root: Path) -> Iterator[str]:
    """Clean up this machine; gives a line for each removed item.

    Args:
        root: the root.
    """
    report = clean_up_place(
        CleanUpRoot("local", LOCAL, str(root), lambda operation, **arguments: perform(operation, arguments)),
        KEPT_DAYS * DAY,
    )
    for thing in report.things:
        yield f"removed {thing.name}"
    yield from report.stayed


SWEEP_SECONDS = 30.0
SLOT_SECONDS = 5.0
COPY_SECONDS, CLEAN_UP_SECONDS = 600.0, 86400.0
LOOK_SECONDS = 0.5
STOP_SECONDS = 10.0
LARGEST_LOG = 10_000_000
BACKLOG = 2048
"""The connections that may wait at the socket, uvicorn's own default."""


def main() -> int:
    """Runs the server until it ends or somebody asks for its end."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    files = server_files()
    make_folders(files)
    other = server_elsewhere(files, BEATS_WITHIN)
    path = files.tunnel if other else files.state
    with alone(files, path.stem if other else "supervisor", STOP_SECONDS) as first:
        if not first or ((known := read_state(files)) and alive(known.supervisor)):
            return 0
        return _supervise(files, path, other)


def _supervise(files: ServerFiles, path: Path, other: ServerState | None) -> int:
    state = _lead(files, other) if other else _adopt(files) or _start(files)
    if state is None:
        return 1
    write_state(path, state)
    try:
        _watch(files, state, other)
    finally:
        end(state.server, patience=STOP_SECONDS)
        if not other:
            _carry_out(keep_copy(files, ended=True))
        if state_in(path) == state:
            path.unlink(missing_ok=True)
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _adopt(files: ServerFiles) -> ServerState | None:
    """Take over a running server whose supervisor was killed."""
    state = read_state(files)
    if state is None or not alive(state.server):
        return None
    return _state(state.port, state.server, state.version, state.package)


def _start(files: ServerFiles) -> ServerState | None:
    with _listener(files) as listener:
        port = int(listener.getsockname()[1])
        pid = processes.start(
            [sys.executable, "-m", "slurm_ray_flow.blocks.server.serve", str(listener.fileno())],
            log=files.log,
            env=server_environment(files, port),
            cwd=files.prefect_home,  # Prefect reads settings from the folder it starts in
            descriptors=[listener.fileno()],
        )
    server = identify(pid)
    return None if server is None else _state(port, server, *versions())


def _lead(files: ServerFiles, other: ServerState) -> ServerState | None:
    """Start a tunnel to the server on another host, at the port of the last one if that is free."""
    last = other.port
    try:
        listener = socket.create_server((HOST, last), backlog=BACKLOG)
    except OSError:
        listener = socket.create_server((HOST, 0), backlog=BACKLOG)
    with listener:
        port = int(listener.getsockname()[1])
        command = [sys.executable, "-m", "slurm_ray_flow.blocks.server.lead", other.host, str(other.port)]
        pid = processes.start(
            [*command, str(listener.fileno())],
            log=files.log,
            cwd=files.prefect_home,
            descriptors=[listener.fileno()],
        )
    process = identify(pid)
    return None if process is None else _state(port, process, other.version, other.package)


def _state(port: int, server: Process, prefect: str, package: str) -> ServerState:
    this = this_process()
    return ServerState(port, prefect, server.pid, server.started, this.pid, this.started, this.boot_id, package)


def _listener(files: ServerFiles) -> socket.socket:
    """The socket of the server. It listens from now on: no other user can do so at its port while Prefect begins.

    The port is the last one, so that bookmarks and connected processes find the server again. Where somebody else has
    that, it is another port, and another password: browsers and processes of ours may have sent him this one.
    """
    remembered = files.folder / "port"
    if wanted := os.environ.get("SRF_SERVER_PORT"):
        remembered.write_text(wanted)
    with contextlib.suppress(FileNotFoundError, ValueError):
        last = int(remembered.read_text())
        try:
            return socket.create_server((HOST, last), backlog=BACKLOG)
        except OSError:
            _say(f"port {last} is somebody else's now: the server gets another one, and another password")
            files.secret.unlink(missing_ok=True)
    chosen = socket.create_server((HOST, 0), backlog=BACKLOG)
    remembered.write_text(str(chosen.getsockname()[1]))
    return chosen


def _watch(files: ServerFiles, state: ServerState, other: ServerState | None) -> None:
    api = Api(state.url, auth_string(files))
    ready, next_beat = False, 0.0
    due = dict.fromkeys(_chores(files, api, other), 0.0)
    while alive(state.server):
        if time.monotonic() >= next_beat:
            if server_elsewhere(files) != other:
                return _say("another host has the server now, or has ended it")
            _beat(files)
            next_beat = time.monotonic() + BEAT_SECONDS
        if not ready and api.healthy():
            ready = _prepare(files, api)
        for chore in due if ready else ():
            if time.monotonic() >= due[chore]:
                begin_chore(chore)
                due[chore] = time.monotonic() + chore.every
        _reap()
        time.sleep(LOOK_SECONDS)
    return _say("the server ended by itself")


@dataclass(frozen=True)
class PeriodicTask:
    """A periodic task: its interval in seconds, its function, and whether it may take long."""

    every: float
    begin: Callable[[], Iterator[str]]
    long: bool = False


def begin_chore(chore: PeriodicTask) -> None:
    """Run a periodic task; a long one in a thread, so that heartbeats need not wait for it."""
    if chore.long:
        threading.Thread(target=lambda: _carry_out(chore.begin()), daemon=True, name="srf-chore").start()
    else:
        _carry_out(chore.begin())


def _chores(files: ServerFiles, api: Api, other: ServerState | None) -> list[PeriodicTask]:
    """The periodic tasks: each host sweeps its own runs, and the one with the server does all else."""
    shared = [
        PeriodicTask(SWEEP_SECONDS, lambda: sweep(api)),
        PeriodicTask(SWEEP_SECONDS, catalog.refresh, long=True),
        PeriodicTask(SWEEP_SECONDS, lambda: ensure_watch(files, api)),
        PeriodicTask(SLOT_SECONDS, lambda: _slots(files, api)),
    ]
    if other:
        return shared
    return [
        *shared,
        PeriodicTask(COPY_SECONDS, lambda: keep_copy(files)),
        PeriodicTask(COPY_SECONDS, lambda: rotate(files)),
        PeriodicTask(CLEAN_UP_SECONDS, lambda: clean_up(home()), long=True),
    ]


def rotate(files: ServerFiles) -> Iterator[str]:
    """Rotate a large log, keeping the one before. Its writers append, so they go on."""
    for log in (files.log, files.folder / "orphans.log"):
        if log.exists() and log.stat().st_size > LARGEST_LOG:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
            yield f"{log.name} was large: what it held is in {log.name}.1"


def _beat(files: ServerFiles) -> None:
    """Show other hosts with this home that this one's supervisor lives."""
    with contextlib.suppress(OSError):
        os.utime(state_file(files))


def _slots(files: ServerFiles, api: Api) -> Iterator[str]:
    """Renew or give back the slots of dead launches within seconds; without such launches nothing is asked."""
    see_to_slots(api)
    if orphan_slots(api):
        yield from ensure_watch(files, api)


def _prepare(files: ServerFiles, api: Api) -> bool:
    try:
        write_landing_page(files)
        ensure_automation(api)
    except (ServerError, OSError) as problem:
        _say(f"not ready yet: {problem}")
        return False
    return True


def _carry_out(chore: Iterator[str]) -> None:
    try:
        for line in chore:
            _say(line)
    except Exception as problem:  # the next time may do better; the server must not end for it
        _say(f"{type(problem).__name__}: {problem}")


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def _say(line: str) -> None:
    sys.stderr.write(f"supervisor: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
