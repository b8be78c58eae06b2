"""The process of the grid's engine: its state file, its start and its end. It imports no Prefect and no database."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path

from packaging.version import InvalidVersion, Version

from slurm_ray_flow.blocks import map_record, processes
from slurm_ray_flow.blocks.files import private_folder, write_whole
from slurm_ray_flow.blocks.processes import Process, alive, elsewhere, end, identify
from slurm_ray_flow.blocks.server.files import locked, server_files, stored_or_made
from slurm_ray_flow.core.errors import GridError, GridTokenError
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.driver.package_in_run import __version__
from slurm_ray_flow.remote.shared.protocol import parse_json

HOST = "127.0.0.1"
TOKEN_VARIABLE = "SRF_GRID_TOKEN"  # noqa: S105 - its name
API_HEADER, API_VERSION = "x-srf-grid-api", "2"
"""Each answer of the engine names the version of its API. A client of another version says so, and what to do."""
START_SECONDS = 120.0
"""Seconds for a start; 3 are usual, but a machine may be busy."""
END_SECONDS = 20.0
ASK_SECONDS = 30.0
"""Seconds for the answer of an engine of another version."""


@dataclasses.dataclass(frozen=True)
class EngineState:
    """The content of engine.json: where the engine listens, its process, and its version of this package."""

    port: int
    pid: int
    started: int
    boot_id: str
    version: str = ""

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
    def ended(self) -> Path:
        """It is there when the engine was ended in order: only a person's wish starts it anew then."""
        return self.folder / "ended"

    @property
    def token_file(self) -> Path:
        """What its clients must know."""
        return self.folder / "token"

    def token(self) -> str:
        """The token, made the first time."""
        private_folder(self.folder)
        return stored_or_made(self.token_file, lambda: secrets.token_urlsafe(32))

    @property
    def user_token_file(self) -> Path:
        """The token of this home's user, where several users share the grid's database."""
        return self.folder / "user_token"

    def user_token(self) -> str:
        """The token of this home's user: `$SRF_GRID_TOKEN`, else its file's; "" for none.

        Raises:
            GridTokenError: others can read the file.
        """
        if chosen := os.environ.get(TOKEN_VARIABLE, "").strip():
            return chosen
        try:
            if self.user_token_file.stat().st_mode & 0o077:
                where, advice = str(self.user_token_file), f"run `chmod 600 {self.user_token_file}`"
                raise GridTokenError("others can read the grid's token", where=where, advice=advice)
            return self.user_token_file.read_text().strip()
        except FileNotFoundError:
            return ""


def read_engine_state() -> EngineState | None:
    """The state of this home's engine; None where none was started, or it was ended in order."""
    with contextlib.suppress(OSError, ValueError):
        return read_record(EngineState, parse_json(EngineFiles().state.read_bytes()))
    return None


def has_campaigns() -> bool:
    """Whether this home has campaigns, or maps whose process is gone, which an engine goes on with."""
    return any((EngineFiles().folder / "campaigns").glob("*")) or map_record.has_orphans()


def is_running() -> bool:
    """Whether the engine runs on this host."""
    state = read_engine_state()
    return state is not None and alive(state.process)


def write_engine_state(port: int) -> None:
    """Note that this process is the engine."""
    process = processes.this_process()
    state = EngineState(port, process.pid, process.started, process.boot_id, __version__)
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


def engine_of_this_version(tell: Callable[[str], None] = lambda _: None) -> EngineState:
    """The engine of this home, as `ensure_engine` gives it; one of an older version is started anew if it is idle.

    Raises:
        GridError: as for `ensure_engine`; or the engine has work and is of another version, or is of a newer one.
    """
    state = ensure_engine(tell)
    if state.version == __version__:
        return state
    named = f"slurm-ray-flow {state.version}" if state.version else "an older slurm-ray-flow"
    if _is_newer(state.version):
        what = f"the grid's engine is of {named}, and this process has {__version__}"
        raise GridError(what, where=str(EngineFiles().state), advice="start this program again, with the newer version")
    if _has_work(state):
        what = f"the grid's engine is of {named}, this is {__version__}, and it has campaigns that go on"
        raise GridError(
            what,
            where=str(EngineFiles().state),
            advice="`srf down` and `srf up` start it anew; its campaigns and their pilots go on",
        )
    tell(f"The grid's engine is of {named}, and is started anew.")
    end_engine()
    return ensure_engine(tell)


def _is_newer(version: str) -> bool:
    try:
        return Version(version) > Version(__version__)
    except InvalidVersion:
        return False


def _has_work(state: EngineState) -> bool:
    """Whether an engine has a campaign that has not ended; one that does not say so may have one."""
    import httpx

    headers = {"Authorization": f"Bearer {EngineFiles().token()}"}
    try:
        answer = httpx.get(f"{state.url}/campaigns", headers=headers, timeout=ASK_SECONDS, trust_env=False)
        return any(campaign["state"] in {"active", "paused"} for campaign in answer.raise_for_status().json())
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return True


def restart_if_needed() -> bool:
    """Start the engine if its process is gone without having been ended, or a map waits for it; says whether it did."""
    if not _is_needed():
        return False
    with locked(server_files()):
        if not _is_needed():  # somebody has ended it, or started it anew
            return False
        _start()
    return True


def _is_needed() -> bool:
    state = read_engine_state()
    if state is None:
        return not EngineFiles().ended.exists() and map_record.has_orphans()
    return not elsewhere(state.boot_id) and not alive(state.process)


def end_engine() -> bool:
    """End the engine; pilots go on, and the next engine finds them. Says whether one ran."""
    with locked(server_files()):
        files, state = EngineFiles(), read_engine_state()
        if state is not None and elsewhere(state.boot_id):
            return False
        if files.folder.is_dir():
            files.ended.touch(mode=0o600)  # first, so that nobody takes its end for an accident
        files.state.unlink(missing_ok=True)
        was_alive = state is not None and alive(state.process)
        if state is not None:
            end(state.process, patience=END_SECONDS)
        map_record.end_engines_processes()
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
    files.ended.unlink(missing_ok=True)
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
