"""Owns the Prefect server: starts it, ends with it and ends it, and sweeps every half minute.

    python -m slurm_ray_flow.blocks.server.supervisor

Started by `ensure_server`, in a session of its own. It never imports Prefect, so that it stays small.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from types import FrameType

from slurm_ray_flow.blocks import shell
from slurm_ray_flow.blocks.processes import Process, alive, end, identify, this_process
from slurm_ray_flow.blocks.server.address import HOST, ServerState, read_state, write_state
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.automation import ensure_automation
from slurm_ray_flow.blocks.server.clean_up import clean_up
from slurm_ray_flow.blocks.server.files import ServerFiles, alone, auth_string, make_folders, server_files
from slurm_ray_flow.blocks.server.log_in import write_landing_page
from slurm_ray_flow.blocks.server.orphans import ensure_watch, orphan_slots
from slurm_ray_flow.blocks.server.settings import server_environment
from slurm_ray_flow.blocks.server.sweep import see_to_slots, sweep
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.home import home

SWEEP_SECONDS = 30.0
SLOT_SECONDS = 5.0
CLEAN_UP_SECONDS = 86400.0
LOOK_SECONDS = 0.5
STOP_SECONDS = 10.0
BACKLOG = 2048
"""As many connections as uvicorn would have wait."""


def main() -> int:
    """Runs the server until it ends or somebody asks for its end."""
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    files = server_files()
    make_folders(files)
    with alone(files, "supervisor", STOP_SECONDS) as first:
        if not first or ((known := read_state(files)) and alive(known.supervisor)):
            return 0
        return _supervise(files)


def _supervise(files: ServerFiles) -> int:
    state = _adopt(files) or _start(files)
    if state is None:
        return 1
    try:
        _watch(files, state)
    finally:
        end(state.server, patience=STOP_SECONDS)
        files.state.unlink(missing_ok=True)
    return 0


def _leave(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _adopt(files: ServerFiles) -> ServerState | None:
    """A server whose supervisor was killed goes on under this one."""
    state = read_state(files)
    if state is None or not alive(state.server):
        return None
    return _know(files, state.port, state.server, state.version)


def _start(files: ServerFiles) -> ServerState | None:
    with _listener(files) as listener:
        port = int(listener.getsockname()[1])
        pid = shell.start(
            [sys.executable, "-m", "slurm_ray_flow.blocks.server.serve", str(listener.fileno())],
            log=files.log,
            env=server_environment(files, port),
            cwd=files.prefect_home,  # Prefect reads settings from the folder it starts in
            descriptors=[listener.fileno()],
        )
    server = identify(pid)
    return None if server is None else _know(files, port, server, version("prefect"))


def _know(files: ServerFiles, port: int, server: Process, server_version: str) -> ServerState:
    this = this_process()
    state = ServerState(port, server_version, server.pid, server.started, this.pid, this.started, this.boot_id)
    write_state(files, state)
    return state


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


def _watch(files: ServerFiles, state: ServerState) -> None:
    api = Api(state.url, auth_string(files))
    ready, next_sweep, next_clean_up, next_slots = False, 0.0, 0.0, 0.0
    while alive(state.server):
        if not ready and api.healthy():
            ready = _prepare(files, api)
        if ready and time.monotonic() >= next_sweep:
            _carry_out(sweep(api))
            _carry_out(ensure_watch(files, api))
            next_sweep = time.monotonic() + SWEEP_SECONDS
        if ready and time.monotonic() >= next_slots:
            _carry_out(_slots(files, api))
            next_slots = time.monotonic() + SLOT_SECONDS
        if ready and time.monotonic() >= next_clean_up:
            _carry_out(clean_up(home()))
            next_clean_up = time.monotonic() + CLEAN_UP_SECONDS
        _reap()
        time.sleep(LOOK_SECONDS)
    _say("the server ended by itself")


def _slots(files: ServerFiles, api: Api) -> Iterator[str]:
    """What others wait for comes back within seconds; where no launch has died, this asks nobody."""
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
