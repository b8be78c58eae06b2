"""The address of the server, and whether it is alive, found in a millisecond without a request."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import urllib.request
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.processes import Process, alive, elsewhere
from slurm_ray_flow.blocks.server.files import ServerFiles, server_files
from slurm_ray_flow.core.record import read_record
from slurm_ray_flow.remote.shared.protocol import parse_json

HOST = "127.0.0.1"
LANDING = "srf.html"
"""This package's page in the UI, which logs the browser in, and redirects to the run's page."""
CONNECT_SECONDS = 1.0
BEAT_SECONDS, BEATS_WITHIN = 5.0, 25.0
"""Seconds between two touches of the server's state file by its supervisor, and seconds that another host waits for
one: sshfs caches attributes of files for 20 s."""
FAR_SECONDS = 5.0
"""Seconds for a connection to a server on another host, where a lost packet is sent again after one to three."""


@dataclass(frozen=True)
class ServerAddress:
    """A Prefect server that can be used.

    Attributes:
        url: the address of its API.
        ui_url: the address of its UI.
        owned: whether this package runs it; False for a server that the user configured.
        started: whether this call started it.
        process: the process of our own server, or of the tunnel to it; None for a configured server.
    """

    url: str
    ui_url: str
    owned: bool
    started: bool = False
    process: Process | None = None

    def page(self, run_id: str = "") -> str:
        """The address of the UI or of a run's page, through this package's page, which logs in."""
        if self.owned:
            return f"{self.ui_url}/{LANDING}" + (f"?run={run_id}" if run_id else "")
        return f"{self.ui_url}/runs/flow-run/{run_id}" if run_id else self.ui_url


@dataclass(frozen=True)
class ServerState:
    """The content of server.json. Pids stand with their start and the boot, so that a reused pid is recognized.

    `version` is Prefect's version, `package` that of slurm-ray-flow.
    The state of a tunnel to a server on another host has the same form; the port is that of its end on this host.
    """

    port: int
    version: str
    pid: int
    started: int
    supervisor_pid: int
    supervisor_started: int
    boot_id: str
    package: str = ""

    @property
    def host(self) -> str:
        """The name of the host."""
        return self.boot_id.rpartition(" ")[2]

    @property
    def url(self) -> str:
        """The address of the API."""
        return f"http://{HOST}:{self.port}/api"

    @property
    def server(self) -> Process:
        """The Prefect server's process."""
        return Process(self.pid, self.started, self.boot_id)

    @property
    def supervisor(self) -> Process:
        """The process that owns the server."""
        return Process(self.supervisor_pid, self.supervisor_started, self.boot_id)

    def address(self, *, started: bool = False) -> ServerAddress:
        """The server's address for its clients."""
        return ServerAddress(self.url, f"http://{HOST}:{self.port}", owned=True, started=started, process=self.server)


def read_state(files: ServerFiles) -> ServerState | None:
    """The state of the server or of the tunnel to it; None where no file can be read."""
    return state_in(state_file(files))


def state_file(files: ServerFiles) -> Path:
    """The state file: the server's, if it is on this host, else that of this host's tunnel to it."""
    return files.tunnel if _is_elsewhere(state_in(files.state)) else files.state


def server_elsewhere(files: ServerFiles, patience: float = 0.0) -> ServerState | None:
    """The state of this home's server if another host runs it; None otherwise.

    Args:
        files: the server's files.
        patience: seconds to wait for a touch of the state file by the server's supervisor; None without a touch.
    """
    state = state_in(files.state)
    if not _is_elsewhere(state):
        return None
    if not patience:
        return state
    touched_before, deadline = _modification_time(files.state), time.monotonic() + patience
    while time.monotonic() < deadline and state_in(files.state) == state:
        if _modification_time(files.state) != touched_before:
            return state
        time.sleep(0.2)
    return None


def _is_elsewhere(state: ServerState | None) -> bool:
    return state is not None and elsewhere(state.boot_id)


def _modification_time(path: Path) -> float:
    """The time of a file's last change; opening the file makes a network file system refresh it."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime
    return 0.0


def state_in(path: Path) -> ServerState | None:
    """Read a state file; None where it is missing or can't be read."""
    with contextlib.suppress(OSError, ValueError):
        return read_record(ServerState, parse_json(path.read_bytes()))
    return None


def write_state(path: Path, state: ServerState) -> None:
    """Write a state file."""
    write_whole(path, json.dumps({"url": state.url, **asdict(state)}, indent=1).encode())


def versions() -> tuple[str, str]:
    """The installed versions of Prefect and of this package."""
    return version("prefect"), version("slurm-ray-flow")


def listening(port: int, host: str = HOST, patience: float = CONNECT_SECONDS) -> bool:
    """Whether a port takes connections, as Prefect's server does once it is ready."""
    try:
        socket.create_connection((host, port), timeout=patience).close()
    except OSError:
        return False
    return True


def serving(state: ServerState | None) -> bool:
    """Whether our server's process lives and takes connections."""
    return state is not None and alive(state.server) and listening(state.port)


def server_alive(address: ServerAddress) -> bool:
    """Whether the server can be reached; makes a connection but no request, and takes a few seconds at most.

    For a server behind a site's proxy, which only a request could check, it is True.
    """
    if address.owned:
        state = read_state(server_files())
        return state is not None and state.url == address.url and serving(state)
    parts = urlsplit(address.url)
    host, port = parts.hostname or HOST, parts.port or (443 if parts.scheme == "https" else 80)
    by_proxy = parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    return by_proxy or listening(port, host, FAR_SECONDS)
