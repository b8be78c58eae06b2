"""The process of the grid's engine: its state file, its start and its end. It imports no Prefect and no database."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

from slurm_ray_flow.blocks import processes
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.blocks.processes import Process, alive, elsewhere, end, identify
from slurm_ray_flow.blocks.server.files import locked, server_files, stored_or_made
from slurm_ray_flow.core.errors import GridError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.shared.protocol import parse_json

HOST = "127.0.0.1"
START_SECONDS = 120.0
"""Seconds for a start; 3 are usual, but a machine may be busy."""
END_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class EngineState:
    """The content of engine.json: where the engine listens, and its process."""

    port: int
    pid: int
    started: int
    boot_id: str

    @property
    def url(self) -> str:
        """The address of its API."""
        return f"http://{HOST}:{self.port}"

    @property
    def host(self) -> str:
        """The name of its host."""
        return self.boot_id.rpartition(" ")[2]

    @property
    def process(self) -> Process:
        """Its process."""
        return Process(self.pid, self.started, self.boot_id)


class EngineFiles:
    """The engine's files, in one folder that only its user can enter."""

    def __init__(self) -> None:
        self.folder = home() / "grid"

    @property
    def state(self) -> Path:
        """The state file. It is there as long as the engine shall run, also where a start of it has failed."""
        return self.folder / "engine.json"

    @property
    def log(self) -> Path:
        """Its log."""
        return self.folder / "log"

    @property
    def token_file(self) -> Path:
        """What its clients must know."""
        return self.folder / "token"

    def token(self) -> str:
        """The token, made the first time."""
        private_folder(self.folder)
        return stored_or_made(self.token_file, lambda: secrets.token_urlsafe(32))


def read_engine_state() -> EngineState | None:
    """The state of this home's engine; None where none was started, or it was ended in order."""
    with contextlib.suppress(OSError, ValueError):
        return read_record(EngineState, parse_json(EngineFiles().state.read_bytes()))
    return None


def has_campaigns() -> bool:
    """Whether this home has campaigns, which an engine goes on with."""
    return any((EngineFiles().folder / "campaigns").glob("*"))


def write_engine_state(port: int) -> None:
    """Note that this process is the engine."""
    process = processes.this_process()
    state = EngineState(port, process.pid, process.started, process.boot_id)
    write_whole(EngineFiles().state, json.dumps(dataclasses.asdict(state)).encode())


def engine_status() -> str:
    """The state of this home's engine, for people; "" where there was none."""
    state = read_engine_state()
    if state is None:
        return "stopped" if has_campaigns() else ""
    if elsewhere(state.boot_id):
        return f"on {state.host}"
    return f"running, process {state.pid}" if alive(state.process) else "gone; it is started anew within seconds"


def ensure_engine(tell: Callable[[str], None] = lambda _: None) -> EngineState:
    """The engine of this home, which is started if it does not run. Of several processes at once, one starts it.

    Raises:
        GridError: it did not start, with the end of its log; or it runs on another host.
    """
    if (state := _usable()) is not None:
        return state
    with locked(server_files()):
        if (state := _usable()) is not None:
            return state
        tell("Starting the grid's engine (about 3 s, once).")
        return _start()


def restart_if_killed() -> bool:
    """Start the engine anew if its process is gone without having been ended; says whether it did."""
    if not _is_killed():
        return False
    with locked(server_files()):
        if not _is_killed():  # somebody has ended it, or started it anew
            return False
        _start()
    return True


def _is_killed() -> bool:
    state = read_engine_state()
    return state is not None and not elsewhere(state.boot_id) and not alive(state.process)


def end_engine() -> bool:
    """End the engine; pilots go on, and the next engine finds them. Says whether one ran."""
    with locked(server_files()):
        state = read_engine_state()
        if state is None or elsewhere(state.boot_id):
            return False
        EngineFiles().state.unlink(missing_ok=True)  # first, so that nobody takes its end for an accident
        was_alive = alive(state.process)
        end(state.process, patience=END_SECONDS)
    return was_alive


def _usable() -> EngineState | None:
    state = read_engine_state()
    if state is None:
        return None
    if elsewhere(state.boot_id):
        advice = f"use it on {state.host}; `srf down` there ends it"
        raise GridError(f"this home's grid runs on {state.host}", where=str(EngineFiles().state), advice=advice)
    return state if alive(state.process) else None


def _start() -> EngineState:
    files = EngineFiles()
    private_folder(files.folder)
    files.token()
    # Its pilots log in with the clusters' passwords. PREFECT__ is of the flow run that it may start in.
    env = processes.with_cluster_passwords("PREFECT__")
    pid = processes.start(
        [sys.executable, "-m", "slurm_ray_flow.grid.service"], log=files.log, env=env, cwd=files.folder
    )
    process, deadline = identify(pid), time.monotonic() + START_SECONDS
    while process is not None and alive(process) and time.monotonic() < deadline:
        state = read_engine_state()
        if state is not None and state.pid == pid:
            return state
        time.sleep(0.05)
    if process is not None:
        end(process, patience=1.0)
    lines = files.log.read_text(errors="replace").splitlines()[-15:]
    text = "\n".join(["the grid's engine did not start; its log ends so:", *lines])
    raise GridError(text, where=str(files.log), advice="mend what the log names, and try again")
