"""Where the server is, and whether it lives: answered in a millisecond, without a request."""

from __future__ import annotations

import contextlib
import json
import socket
from dataclasses import asdict, dataclass, fields
from urllib.parse import urlsplit

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.processes import Process, alive
from slurm_ray_flow.blocks.server.files import ServerFiles, server_files

HOST = "127.0.0.1"
CONNECT_SECONDS = 1.0


@dataclass(frozen=True)
class ServerAddress:
    """A Prefect server that can be used.

    Attributes:
        url: of its API.
        ui_url: of its UI.
        owned: it is the one that this package runs, not one that the user configured.
        started: this very call started it.
    """

    url: str
    ui_url: str
    owned: bool
    started: bool = False


@dataclass(frozen=True)
class ServerState:
    """What server.json holds. The pids stand with their start and the boot, so that a pid used again is not taken."""

    port: int
    version: str
    pid: int
    started: int
    supervisor_pid: int
    supervisor_started: int
    boot_id: str

    @property
    def url(self) -> str:
        """Of the API."""
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
        """What others need to use it."""
        return ServerAddress(self.url, f"http://{HOST}:{self.port}", owned=True, started=started)


def read_state(files: ServerFiles) -> ServerState | None:
    """What is known about our server; None where there is nothing, or nothing that can be read."""
    known = {field.name for field in fields(ServerState)}
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        values = json.loads(files.state.read_text())
        return ServerState(**{name: value for name, value in values.items() if name in known})
    return None


def write_state(files: ServerFiles, state: ServerState) -> None:
    """Keeps where the server is."""
    write_whole(files.state, json.dumps({"url": state.url, **asdict(state)}, indent=1).encode())


def listening(port: int, host: str = HOST) -> bool:
    """Whether something takes connections there. Prefect's server does so once it is ready, not before."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def serving(state: ServerState | None) -> bool:
    """Whether our server's process lives and takes connections."""
    return state is not None and alive(state.server) and listening(state.port)


def server_alive(address: ServerAddress) -> bool:
    """Whether the server can be reached; costs a connection, never a request, and at most a second."""
    if address.owned:
        state = read_state(server_files())
        return state is not None and state.url == address.url and serving(state)
    parts = urlsplit(address.url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return listening(port, parts.hostname or HOST)
