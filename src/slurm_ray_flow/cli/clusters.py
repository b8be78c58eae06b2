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
Texts = Annotated[list[str] | None, Parameter(negative="", allow_leading_hyphen=True)]


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


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Slurm:
    """A cluster that Slurm gives out; what is left out is the site's default."""

    slurm: Annotated[bool, Switch] = False
    """It is a Slurm cluster, and the host is its login node."""
    here: Annotated[bool, Switch] = False
    """This machine is its login node: no SSH."""
    profile: str | None = None
    """A site that srf knows, such as curnagl: what is left out is as there."""
    partition: str | None = None
    """Where jobs run."""
    account: str | None = None
    """What is charged."""
    qos: str | None = None
    """The quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    reservation: str | None = None
    """Nodes that are kept for you."""
    exclude: str | None = None
    """Nodes that are left out."""
    modules: Texts = None
    """A module to load in each job; may be given more than once."""
    setup: Texts = None
    """A line of shell that each job begins with; may be given more than once."""
    sbatch_options: Texts = None
    """One more option of sbatch, such as --sbatch-options=--mail-type=END; may be given more than once."""
    scratch: str | None = None
    """The folder on each node for what a run needs there for a while."""
    container: str | None = None
    """The image of Apptainer or Singularity that functions run in."""
    container_options: Texts = None
    """One more option of `apptainer exec`, such as --container-options=--bind=/data; may be given more than once."""
    container_python: str | None = None
    """The image's Python, as one would call it inside."""

    @property
    def meant(self) -> bool:
        """Whether the cluster is one of Slurm's."""
        return self != Slurm()

    def fields(self) -> dict[str, Any]:
        """What the block gets, the profile's fields with those that are given."""
        from slurm_ray_flow.deployments.profiles import load_profile

        given = _given(**vars(self))
        switches = ("slurm", "here", "profile")
        known = load_profile(self.profile) if self.profile else {}
        return {**known, **{name: _without_empty(value) for name, value in given.items() if name not in switches}}


def init(
    name: str,
    *,
    login: Login = Login(),
    server: Server = Server(),
    slurm: Slurm = Slurm(),
    password: Annotated[bool, Switch] = False,
    password_from_env: str | None = None,
    change: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Save a server that is reached by SSH, or a Slurm cluster, under a name of its own.

    For example `srf init desi --host desi.example.org --user alice`, or
    `srf init curnagl --profile curnagl --user alice --account PROJECT`. What is left out is as ~/.ssh/config has it.
    No secret is ever an option: a password is asked for, or taken from the environment.

    Args:
        name: What functions call it: cluster="NAME".
        password: Ask for a password and save it.
        password_from_env: The variable that holds the password, which is then saved.
        change: Change what is given, of a server that is saved; the rest stays.
        overwrite: Replace what was saved under this name.
    """
    from slurm_ray_flow.blocks.saved import change_cluster, save_cluster

    fields = {**slurm.fields(), **_given(**vars(server))}
    host = fields.pop("host", name)
    connection = _given(**vars(login), password=_password(name, password, password_from_env))
    if slurm.here and connection:
        raise OptionError("--here means this machine", advice="leave out what is for logging in, or --here")
    if not change and not slurm.here:
        connection.setdefault("host", host)
    use_server()
    if change:
        kind = change_cluster(name, connection, fields)
    else:
        kind = "slurm-cluster" if slurm.meant else "ssh-server"
        save_cluster(kind, name, None if slurm.here else connection, fields, overwrite=overwrite)
    if json:
        print_json({"name": name, "kind": kind, **_given(host=connection.get("host"))})
    else:
        print_text(f"{name} is saved. `srf check {name}` says whether it can be used.")


def clusters(name: str | None = None, *, json: Json = False) -> None:
    """List the clusters that are saved, and this machine; or, of one Slurm cluster, its partitions.

    `srf clusters curnagl` shows each partition's limits, what a node of it has, and how much is taken now.

    Args:
        name: A cluster of Slurm's.
    """
    if name is not None:
        _partitions(name, json)
        return
    from slurm_ray_flow.blocks.saved import Saved, saved_clusters

    use_server()
    found = [Saved("local", "local-machine", "this machine"), *saved_clusters()]
    if json:
        print_json([dataclasses.asdict(one) for one in found])
    else:
        print_table(["NAME", "KIND", "HOST"], [[one.name, one.kind, one.host] for one in found])


def _partitions(name: str, json: bool) -> None:
    cluster = cluster_named(name)
    from slurm_ray_flow.blocks.slurm.sites import site
    from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster
    from slurm_ray_flow.core.slurm.table import COLUMNS, site_rows, site_values

    if not isinstance(cluster, SlurmCluster):
        raise OptionError(f"{name!r} has no partitions", advice=f"`srf check {name}` says what it has")
    found = site(cluster.login)
    if json:
        print_json({"name": name, **site_values(found)})
    else:
        print_table(COLUMNS, site_rows(found))


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


def _without_empty(value: Any) -> Any:
    """One empty text is how a list is given that shall be empty."""
    return [text for text in value if text] if isinstance(value, list) else value


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
