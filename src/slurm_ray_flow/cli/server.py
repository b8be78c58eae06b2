"""`srf up`, `srf down`, `srf status`: the Prefect server."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from slurm_ray_flow.blocks.server import ServerAddress, ensure_server, server_alive, stop_server
from slurm_ray_flow.blocks.server.address import read_state
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.client import configured_auth, configured_url, ui_url_of
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.blocks.server.log_in import open_ui
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.sweep import TAG

app = App(name="server", help="The Prefect server.")

STATES = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@dataclass(frozen=True)
class Status:
    """What `srf status` shows. `state` is "running", "silent" (a process without an answer) or "stopped"."""

    state: str
    owned: bool
    url: str = ""
    ui_url: str = ""
    version: str = ""
    pid: int | None = None
    database_bytes: int | None = None
    runs: dict[str, int] = field(default_factory=dict)


@app.command
def up(*, open: bool = False, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:  # noqa: A002 - the option's name
    """Start the Prefect server, if none runs or is configured, and say where its UI is.

    Args:
        open: show the UI in the browser, logged in.
        as_json: print JSON.
    """
    address = ensure_server(lambda _: None if as_json else Console(stderr=True).print(_, highlight=False))
    if open:
        open_ui(address)
    if as_json:
        _print_json(asdict(address))
        return
    Console(soft_wrap=True, highlight=False).print(f"Prefect UI: {address.ui_url}")
    if address.owned:
        how = f'its log-in is "srf:" and the content of {server_files().secret}; `srf up --open` does it for you'
        Console(soft_wrap=True, highlight=False).print(how)


@app.command
def down(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """End the Prefect server that this package started. One that you configured is left alone.

    Args:
        as_json: print JSON.
    """
    stopped = stop_server()
    if as_json:
        _print_json({"stopped": stopped})
    else:
        Console().print("The Prefect server has ended." if stopped else "No Prefect server of ours was running.")


@app.command
def status(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """Show the state of the Prefect server, and how many runs are in which state.

    Args:
        as_json: print JSON.
    """
    found = server_status()
    if as_json:
        _print_json(asdict(found))
        return
    table = Table("Prefect server", found.state, title_justify="left")
    rows = {"UI": found.ui_url, "API": found.url, "version": found.version, "process": found.pid or ""}
    for name, value in {**rows, "database": _size(found.database_bytes), **found.runs}.items():
        if value != "":
            table.add_row(str(name), str(value))
    Console().print(table)


def server_status() -> Status:
    """Asks the server that launches would use; starts none."""
    state = read_state(server_files())
    configured = configured_url()
    if configured and (state is None or configured != state.url):
        address = ServerAddress(configured, ui_url_of(configured), owned=False)
        return _ask(address, Api(configured, configured_auth()), pid=None)
    if state is None:
        return Status("stopped", owned=True)
    return _ask(state.address(), Api(state.url, auth_string(server_files())), pid=state.pid)


def _ask(address: ServerAddress, api: Api, *, pid: int | None) -> Status:
    if not server_alive(address):
        return Status("stopped", address.owned, address.url, address.ui_url)
    database = server_files().prefect_home / "prefect.db"
    size = database.stat().st_size if address.owned and database.exists() else None
    try:
        version, runs = str(api.get("/admin/version")), _runs(api)
    except ServerError:
        return Status("silent", address.owned, address.url, address.ui_url, "", pid, size)
    return Status("running", address.owned, address.url, address.ui_url, version, pid, size, runs)


def _runs(api: Api) -> dict[str, int]:
    counts = {}
    for name in STATES:
        wanted = {"tags": {"all_": [TAG]}, "state": {"type": {"any_": [name]}}}
        if number := int(api.post("/flow_runs/count", {"flow_runs": wanted})):
            counts[name.lower()] = number
    return counts


def _size(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:.1f} MB"


def _print_json(values: dict[str, object]) -> None:
    Console(soft_wrap=True, highlight=False, markup=False).print(json.dumps(values))
