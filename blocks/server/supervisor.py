"""The supervisor: the process that owns the Prefect server, ends with it, and sweeps every half minute.

    python -m slurm_ray_flow.blocks.server.supervisor

`ensure_server` starts it, in its own session. It never imports Prefect, to need little memory.
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

from slurm_ray_flow.blocks import catalog, grid_engine, processes
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
from slurm_ray_flow.blocks.server.files import ServerFiles, auth_string, make_folders, only_process, server_files
from slurm_ray_flow.blocks.server.log_in import write_landing_page
from slurm_ray_flow.blocks.server.settings import keep_copy, server_environment
from slurm_ray_flow.blocks.server.sweep import ensure_watch, orphan_slots, settle_slots, sweep
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
    """Run the server until it ends, or until a signal."""
    signal.signal(signal.SIGTERM, _exit_on_signal)
    signal.signal(signal.SIGINT, _exit_on_signal)
    files = server_files()
    make_folders(files)
    other = server_elsewhere(files, BEATS_WITHIN)
    path = files.tunnel if other else files.state
    with only_process(files, path.stem if other else "supervisor", STOP_SECONDS) as is_only:
        if not is_only or ((state := read_state(files)) and alive(state.supervisor)):
            return 0
        return _supervise(files, path, other)


def _supervise(files: ServerFiles, path: Path, other: ServerState | None) -> int:
    state = _start_tunnel(files, other) if other else _adopt(files) or _start(files)
    if state is None:
        return 1
    write_state(path, state)
    grid_engine.EngineFiles().ended.unlink(missing_ok=True)
    try:
        _watch(files, state, other)
    finally:
        end(state.server, patience=STOP_SECONDS)
        if not other:
            _log_lines(keep_copy(files, ended=True))
        if state_in(path) == state:
            path.unlink(missing_ok=True)
    return 0


def _exit_on_signal(_number: int, _frame: FrameType | None) -> None:
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


def _start_tunnel(files: ServerFiles, other: ServerState) -> ServerState | None:
    """Start a tunnel to the server on another host, at the port of the last one if that is free."""
    try:
        listener = socket.create_server((HOST, other.port), backlog=BACKLOG)
    except OSError:
        listener = socket.create_server((HOST, 0), backlog=BACKLOG)
    with listener:
        port = int(listener.getsockname()[1])
        command = [sys.executable, "-m", "slurm_ray_flow.blocks.server.tunnel", other.host, str(other.port)]
        pid = processes.start(
            [*command, str(listener.fileno())],
            log=files.log,
            cwd=files.prefect_home,
            descriptors=[listener.fileno()],
        )
    process = identify(pid)
    return None if process is None else _state(port, process, other.version, other.package)


def _state(port: int, server: Process, prefect: str, package: str) -> ServerState:
    owner = this_process()
    return ServerState(port, prefect, server.pid, server.started, owner.pid, owner.started, owner.boot_id, package)


def _listener(files: ServerFiles) -> socket.socket:
    """The socket of the server, which listens at once, so that no other user can take its port while Prefect starts.

    It has the last port, so that bookmarks and connected processes find the server again. If another program has that
    port, the server gets another port and another password, since our clients may have sent the password there.
    """
    port_file = files.folder / "port"
    if chosen_port := os.environ.get("SRF_SERVER_PORT"):
        port_file.write_text(chosen_port)
    with contextlib.suppress(FileNotFoundError, ValueError):
        last_port = int(port_file.read_text())
        try:
            return socket.create_server((HOST, last_port), backlog=BACKLOG)
        except OSError:
            _log(f"port {last_port} is somebody else's now: the server gets another one, and another password")
            files.secret.unlink(missing_ok=True)
    listener = socket.create_server((HOST, 0), backlog=BACKLOG)
    port_file.write_text(str(listener.getsockname()[1]))
    return listener


def _watch(files: ServerFiles, state: ServerState, other: ServerState | None) -> None:
    api = Api(state.url, auth_string(files))
    ready, next_touch = False, 0.0
    due_times = dict.fromkeys(_periodic_tasks(files, api, other), 0.0)
    while alive(state.server):
        if time.monotonic() >= next_touch:
            if server_elsewhere(files) != other:
                return _log("another host has the server now, or has ended it")
            _touch_state(files)
            next_touch = time.monotonic() + BEAT_SECONDS
        if not ready and api.healthy():
            ready = _set_up_server(files, api)
        for task in due_times if ready else ():
            if time.monotonic() >= due_times[task]:
                run_periodic_task(task)
                due_times[task] = time.monotonic() + task.every
        _reap()
        time.sleep(LOOK_SECONDS)
    return _log("the server ended by itself")


@dataclass(frozen=True)
class PeriodicTask:
    """A periodic task: its interval in seconds, its function, and whether it may take a long time."""

    every: float
    begin: Callable[[], Iterator[str]]
    long: bool = False


def run_periodic_task(task: PeriodicTask) -> None:
    """Run a periodic task; a long one runs in a thread, so that heartbeats do not wait for it."""
    if task.long:
        threading.Thread(target=lambda: _log_lines(task.begin()), daemon=True, name="srf-chore").start()
    else:
        _log_lines(task.begin())


def _periodic_tasks(files: ServerFiles, api: Api, other: ServerState | None) -> list[PeriodicTask]:
    """The periodic tasks: each host sweeps its own runs; only the server's host does the others."""
    tasks = [
        PeriodicTask(SWEEP_SECONDS, lambda: sweep(api)),
        PeriodicTask(SWEEP_SECONDS, catalog.refresh, long=True),
        PeriodicTask(SWEEP_SECONDS, lambda: ensure_watch(files, api)),
        PeriodicTask(SLOT_SECONDS, lambda: _settle_slots(files, api)),
        PeriodicTask(SLOT_SECONDS, _keep_engine, long=True),
    ]
    if other:
        return tasks
    return [
        *tasks,
        PeriodicTask(COPY_SECONDS, lambda: keep_copy(files)),
        PeriodicTask(COPY_SECONDS, lambda: rotate(files)),
        PeriodicTask(CLEAN_UP_SECONDS, lambda: clean_up(home()), long=True),
    ]


def rotate(files: ServerFiles) -> Iterator[str]:
    """Rotate large logs, and keep one earlier file of each. Writers may go on, since they append."""
    for log in (files.log, files.folder / "orphans.log"):
        if log.exists() and log.stat().st_size > LARGEST_LOG:
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
            yield f"{log.name} was large: what it held is in {log.name}.1"


def _touch_state(files: ServerFiles) -> None:
    """Touch the state file, by which other hosts with this home see that this supervisor lives."""
    with contextlib.suppress(OSError):
        os.utime(state_file(files))


def _keep_engine() -> Iterator[str]:
    """Start the grid's engine where it was killed on this host, or where a map's own process is gone."""
    if grid_engine.restart_if_needed():
        yield "the grid's engine was gone or is needed, and was started"


def _settle_slots(files: ServerFiles, api: Api) -> Iterator[str]:
    """Renew or give back the slots of dead launches within seconds."""
    settle_slots(api)
    if orphan_slots(api):
        yield from ensure_watch(files, api)


def _set_up_server(files: ServerFiles, api: Api) -> bool:
    try:
        write_landing_page(files)
        ensure_automation(api)
    except (ServerError, OSError) as problem:
        _log(f"not ready yet: {problem}")
        return False
    return True


def _log_lines(lines: Iterator[str]) -> None:
    try:
        for line in lines:
            _log(line)
    except Exception as problem:  # the next time may do better; the server must not end for it
        _log(f"{type(problem).__name__}: {problem}")


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def _log(line: str) -> None:
    sys.stderr.write(f"supervisor: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
