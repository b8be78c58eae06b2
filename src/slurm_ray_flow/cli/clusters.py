"""`srf init` and `srf clusters`: the clusters that are saved as blocks."""

from __future__ import annotations

import dataclasses
import os
import sys
from getpass import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from slurm_ray_flow.cli.output import Json, print_json, print_table, print_text
from slurm_ray_flow.core.errors import OptionError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster

Switch = Parameter(negative="", show_default=False)


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Login:
    """How to log in; what is left out is as ~/.ssh/config has it."""

    host: str | None = None
    """A Host of ~/.ssh/config, a name or an address; NAME by default."""
    user: str | None = None
    """The user's name there."""
    port: int | None = None
    """The port of its SSH server."""
    key_file: Path | None = None
    """The private key to log in with."""
    proxy_jump: str | None = None
    """Servers to pass on the way: user@host:port, with commas between them."""
    known_hosts: Path | None = None
    """Another file of known host keys."""


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Server:
    """What runs find there."""

    root: str | None = None
    """The folder there for everything that runs leave."""
    python: str | None = None
    """A path, module:NAME, or download."""
    wheels: Literal["index", "upload"] | None = None
    """Where packages come from: the index that the server reaches, or this machine."""
    lock_path: str | None = None
    """The file whose lock is exclusive use of the server; "" for none."""
    slots: int | None = None
    """How many runs may share the server."""
    gpus: int | None = None
    """How many GPUs runs may use."""
    retention_days: float | None = None
    """How long what nobody uses stays."""


def init(
    name: str,
    *,
    login: Login = Login(),
    server: Server = Server(),
    password: Annotated[bool, Switch] = False,
    password_from_env: str | None = None,
    change: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Save a server that is reached by SSH as a cluster, under a name of its own.

    For example `srf init desi --host desi.example.org --user alice`. What is left out is as ~/.ssh/config has it. No
    secret is ever an option: a password is asked for, or taken from the environment.

    Args:
        name: What functions call it: cluster="NAME".
        password: Ask for a password and save it.
        password_from_env: The variable that holds the password, which is then saved.
        change: Change what is given, of a server that is saved; the rest stays.
        overwrite: Replace what was saved under this name.
    """
    from slurm_ray_flow.blocks.saved import change_ssh_server, save_ssh_server

    connection = _given(**vars(login), password=_password(name, password, password_from_env))
    if not change:
        connection.setdefault("host", name)
    use_server()
    if change:
        change_ssh_server(name, connection, _given(**vars(server)))
    else:
        save_ssh_server(name, connection, _given(**vars(server)), overwrite=overwrite)
    if json:
        print_json({"name": name, "kind": "ssh-server", **_given(host=connection.get("host"))})
    else:
        print_text(f"{name} is saved. `srf check {name}` says whether it can be used.")


def clusters(*, json: Json = False) -> None:
    """List the clusters that are saved, and this machine."""
    from slurm_ray_flow.blocks.saved import Saved, saved_clusters

    use_server()
    found = [Saved("local", "local-machine", "this machine"), *saved_clusters()]
    if json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        print_table(["NAME", "KIND", "HOST"], [[one.name, one.kind, one.host] for one in found])


def cluster_named(name: str) -> Cluster:
    """A cluster by its name; only for a saved one a server is needed.

    Raises:
        OptionError: there is none of this name.
    """
    from slurm_ray_flow.blocks.clusters import find_cluster

    if name != "local":
        use_server()
    return find_cluster(name)


def use_server() -> None:
    """Have Prefect in this process use the server that launches use, where the blocks are."""
    from slurm_ray_flow.blocks.server import connect, ensure_server

    connect(ensure_server(_tell))


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _password(name: str, asked: bool, variable: str | None) -> str | None:
    if variable is not None:
        if not os.environ.get(variable):
            raise OptionError(f"the environment has no {variable}", advice=f"export {variable}, or give --password")
        return os.environ[variable]
    if not asked:
        return None
    if not sys.stdin.isatty():
        raise OptionError("nobody can be asked for a password here", advice="give --password-from-env VARIABLE")
    return getpass(f"Password for {name}: ")


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
