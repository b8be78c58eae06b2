"""`srf up`, `srf down`, `srf status`: the start, the end and the state of the Prefect server."""

from __future__ import annotations

import socket
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

from slurm_ray_flow.cli.names import A_RUN
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_table, print_text, tell
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.sweep import TAG

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.server import ServerAddress
    from slurm_ray_flow.blocks.server.api import Api

STATES = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "COMPLETED", "FAILED", "CANCELLED", "CRASHED")


@dataclass(frozen=True)
class ServerStatus:
    """What `srf status` shows. `state` is "running", "silent" (a process without an answer) or "stopped"."""

    state: str
    owned: bool
    url: str = ""
    ui_url: str = ""
    version: str = ""
    pid: int | None = None
    database_bytes: int | None = None
    runs: dict[str, int] = field(default_factory=dict)
    engine: str = ""
    """The state of the grid's engine; "" where this home has never had one."""


def up(
    run: Annotated[str | None, A_RUN] = None,
    *,
    open: Annotated[bool, Switch] = False,  # noqa: A002
    json: Json = False,
) -> None:
    """Start the Prefect server, if none runs, and say where its UI is, or a run's page there.

    One that you configured is used, and none started beside it. With campaigns, the grid's engine is started, too.

    Examples:
        srf up

        srf up --open

        srf up --open 3f2a

    Args:
        run: The run's id, or the start of it.
        open: Show the page in the browser, logged in.
    """
    from slurm_ray_flow.blocks import grid_engine, store
    from slurm_ray_flow.blocks.server import ensure_server
    from slurm_ray_flow.blocks.server.log_in import open_ui

    def note(text: str) -> None:
        if not json:
            tell(text)

    run_id = store.find_record(run).flow_run_id if run else ""
    address = ensure_server(note)
    if grid_engine.has_campaigns():
        grid_engine.engine_of_this_version(note)
    is_shown = open_ui(address, run_id) if open else False
    if json:
        print_json({**asdict(address), "page": address.page(run_id)})
        return
    print_text(f"{'The run' if run else 'Prefect UI'}: {address.page(run_id)}")
    if not is_shown:
        _tell_address(address, tried=open)
    elif address.owned:
        tell("The browser keeps the log-in. Open a bookmark of it only while the server runs: `srf up` first.")


def _tell_address(address: ServerAddress, *, tried: bool) -> None:
    from slurm_ray_flow.blocks.server.files import server_files

    if tried:
        port = address.ui_url.rpartition(":")[2]
        tunnel = f"; from another machine, `ssh -N -L {port}:127.0.0.1:{port} {socket.gethostname()}` leads there"
        tell("No browser could be started here: open that page in one of this machine" + tunnel * address.owned + ".")
    if address.owned:
        hint = "" if tried else "; `srf up --open` does it for you"
        print_text(f"The page takes the content of {server_files().secret} as its log-in{hint}.")


def down(*, json: Json = False) -> None:
    """End the Prefect server that this package started, and the grid's engine.

    A Prefect server that you configured is left alone. Runs and pilots on clusters go on.

    Examples:
        srf down
    """
    from slurm_ray_flow.blocks.grid_engine import end_engine
    from slurm_ray_flow.blocks.server import stop_server

    engine_stopped = end_engine()
    stopped = stop_server()
    if json:
        print_json({"stopped": stopped, "engine_stopped": engine_stopped})
    else:
        print_text(_down_text(stopped))
        if engine_stopped:
            print_text("The grid's engine has ended; campaigns go on with `srf up`.")


def _down_text(stopped: bool) -> str:
    from slurm_ray_flow.blocks.server.address import server_elsewhere
    from slurm_ray_flow.blocks.server.files import server_files

    if server := server_elsewhere(server_files()):
        return f"The Prefect server is {server.host}'s: run `srf down` there. No tunnel leads there from here now."
    return "The Prefect server has ended." if stopped else "No Prefect server of ours was running."


def status(*, json: Json = False) -> None:
    """Show the state of the Prefect server and of the grid's engine, and how many runs are in which state.

    Exits with 1 when none answers.

    Examples:
        srf status

        srf status --json
    """
    from slurm_ray_flow.blocks.grid_engine import engine_status

    server = replace(server_status(), engine=engine_status())
    if json:
        print_json(asdict(server))
    else:
        facts = {"UI": server.ui_url, "API": server.url, "version": server.version, "process": server.pid or ""}
        runs = {f"{name} runs": number for name, number in server.runs.items()}
        rows = {**facts, "database": _size(server.database_bytes), **runs, "grid": server.engine}
        print_table(["Prefect server", server.state], [[name, str(value)] for name, value in rows.items() if value])
    if server.state != "running":
        sys.exit(1)


def server_status() -> ServerStatus:
    """The state of the server that launches would use; starts none."""
    from slurm_ray_flow.blocks.server import ServerAddress
    from slurm_ray_flow.blocks.server.address import read_state
    from slurm_ray_flow.blocks.server.api import Api
    from slurm_ray_flow.blocks.server.client import api_in_use, configured_url, ui_url_of
    from slurm_ray_flow.blocks.server.files import auth_string, server_files

    state = read_state(server_files())
    configured = configured_url()
    if configured and (state is None or configured != state.url):
        address = ServerAddress(configured, ui_url_of(configured), owned=False)
        return _status_of(address, api_in_use() or Api(configured), pid=None)
    if state is None:
        return ServerStatus("stopped", owned=True)
    return _status_of(state.address(), Api(state.url, auth_string(server_files())), pid=state.pid)


def _status_of(address: ServerAddress, api: Api, *, pid: int | None) -> ServerStatus:
    from slurm_ray_flow.blocks.server import server_alive
    from slurm_ray_flow.blocks.server.files import server_files

    if not server_alive(address):
        return ServerStatus("stopped", address.owned, address.url, address.ui_url)
    database = server_files().prefect_home / "prefect.db"
    size = database.stat().st_size if address.owned and database.exists() else None
    try:
        version, runs = str(api.get("/admin/version")), _runs(api)
    except ServerError:
        return ServerStatus("silent", address.owned, address.url, address.ui_url, "", pid, size)
    return ServerStatus("running", address.owned, address.url, address.ui_url, version, pid, size, runs)


def _runs(api: Api) -> dict[str, int]:
    counts = {}
    for name in STATES:
        query = {"tags": {"all_": [TAG]}, "state": {"type": {"any_": [name]}}}
        if number := int(api.post("/flow_runs/count", {"flow_runs": query})):
            counts[name.lower()] = number
    return counts


def _size(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:.1f} MB"
