"""`srf init`: a cluster is saved as a block, by options or by questions."""

from __future__ import annotations

import dataclasses
import os
import sys
from getpass import getpass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from slurm_ray_flow.cli.names import use_server
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_text
from slurm_ray_flow.core.errors import OptionError

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
    config_file: Path | None = None
    """Another file than ~/.ssh/config."""


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Password:
    """A secret is never an option itself."""

    password: Annotated[bool, Switch] = False
    """Ask for a password and save it."""
    password_from_env: str | None = None
    """The variable that holds the password, which is then saved."""

    def secret(self, name: str) -> str | None:
        """The password of this cluster; None where none is saved."""
        variable = self.password_from_env
        if variable is not None:
            if not os.environ.get(variable):
                raise OptionError(f"the environment has no {variable}", advice=f"export {variable}, or give --password")
            return os.environ[variable]
        if not self.password:
            return None
        if not sys.stdin.isatty():
            raise OptionError("nobody can be asked for a password here", advice="give --password-from-env VARIABLE")
        return getpass(f"Password for {name}: ")


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
class Scheduler:
    """A cluster with a scheduler, Slurm or OAR; what is left out is the site's default."""

    slurm: Annotated[bool, Switch] = False
    """It is a Slurm cluster, and the host is its login node."""
    oar: Annotated[bool, Switch] = False
    """It is an OAR cluster, and the host is its frontend."""
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
    queue: str | None = None
    """OAR's queue where jobs go."""
    project: str | None = None
    """OAR's project, which is charged."""
    properties: str | None = None
    """What OAR's nodes must have, such as "gpumodel = 'A100'"."""
    types: Texts = None
    """A type of OAR's jobs, such as besteffort; may be given more than once."""
    oarsub_options: Texts = None
    """One more option of oarsub; may be given more than once."""
    scratch: str | None = None
    """The folder on each node for what a run needs there for a while."""
    container: str | None = None
    """The image of Apptainer or Singularity that functions run in."""
    container_options: Texts = None
    """One more option of `apptainer exec`, such as --container-options=--bind=/data; may be given more than once."""
    container_python: str | None = None
    """The image's Python, as one would call it inside."""

    @property
    def kind(self) -> str | None:
        """The kind of block that the options are for; None where they fit to any.

        Raises:
            OptionError: they are for two schedulers.
        """
        given = {name for name, value in filled(**vars(self)).items() if value is not False} - {"here"}
        oar, slurm = sorted(given & _OARS), sorted(given & _SLURMS)
        if oar and slurm:
            options = " and ".join(f"--{names[0].replace('_', '-')}" for names in (oar, slurm))
            raise OptionError(f"{options} are for different schedulers", advice="leave out one of them")
        return "oar-cluster" if oar else "slurm-cluster" if given else None

    def fields(self) -> dict[str, Any]:
        """The fields of the block: the profile's, and over them the given ones."""
        from slurm_ray_flow.deployments.profiles import load_profile

        switches = ("slurm", "oar", "here", "profile")
        options = {name: _without_empty(value) for name, value in filled(**vars(self)).items() if name not in switches}
        return {**(load_profile(self.profile) if self.profile else {}), **options}


_OARS = {"oar", "queue", "project", "properties", "types", "oarsub_options"}
_SLURMS = {"slurm", "profile", "partition", "account", "qos", "constraint", "reservation", "exclude", "sbatch_options"}
"""The options that only one of the schedulers has."""


def init(
    name: str | None = None,
    *,
    login: Login = Login(),
    server: Server = Server(),
    scheduler: Scheduler = Scheduler(),
    password: Password = Password(),
    change: Annotated[bool, Switch] = False,
    overwrite: Annotated[bool, Switch] = False,
    yes: Annotated[bool, Switch] = False,
    fingerprint: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    json: Json = False,
) -> None:
    """Save a cluster under a name of its own: an SSH server, or a cluster with Slurm or OAR.

    Without a name it asks: which host, as whom; it logs in, looks what is there (Slurm or OAR, Pythons,
    scratch folders, GPUs), proposes what to save, and checks it. With --yes it takes what it would propose.

    With a name it asks for nothing and connects to nothing: it saves what the options say. What they leave out is as
    ~/.ssh/config has it. No secret is ever an option: a password is asked for, or taken from the environment.

    Examples:
        srf init

        srf init desi --host desi.example.org --user alice

        srf init gricad --oar --host access.example.org --user alice --project PROJECT

        srf init desi --slots 4 --change

        srf init --host login.example.org --user alice --yes --fingerprint SHA256:...

    Args:
        name: What functions call it: cluster="NAME".
        change: Change what is given, of a cluster that is saved; the rest stays.
        overwrite: Replace what was saved under this name.
        yes: Log in, look what is there, and take what is proposed, without a question.
        fingerprint: The host key's fingerprint, SHA256:..., for --yes; may be given again.
    """
    secret = password.secret(name or login.host or "the cluster")
    connection, fields = _fields_of(None if change else name, login, server, scheduler, secret)
    if change and (name is None or yes):
        raise OptionError("--change needs the cluster's name, and no --yes", advice="srf init NAME --slots 4 --change")
    if name is not None and not yes:
        _save(name, login, connection, fields, scheduler, change=change, overwrite=overwrite, json=json)
        return
    from slurm_ray_flow.cli.guide import GivenAnswers, guide

    answers = GivenAnswers(name, connection, fields, here=scheduler.here, kind=scheduler.kind, overwrite=overwrite)
    guide(answers, yes=yes, fingerprints=fingerprint, json=json)


def _fields_of(
    name: str | None, login: Login, server: Server, scheduler: Scheduler, password: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of the connection and of the cluster that the options give."""
    fields = {**scheduler.fields(), **filled(**vars(server))}
    host = fields.pop("host", name)
    connection = filled(**vars(login), password=password)
    if scheduler.here and connection:
        raise OptionError("--here means this machine", advice="leave out what is for logging in, or --here")
    if host and not scheduler.here:
        connection = {"host": host, **connection}
    return connection, fields


def _check_host_is_known(name: str, connection: dict[str, Any]) -> None:
    """Check that a cluster without a given host is a Host of ~/.ssh/config, or a name that the network knows.

    Raises:
        OptionError: it is neither.
    """
    from slurm_ray_flow.blocks.clusters import make_block
    from slurm_ray_flow.blocks.ssh import SshConnection
    from slurm_ray_flow.blocks.ssh.endpoint import is_known

    if connection["host"] == name and not is_known(make_block(SshConnection, connection).endpoint()):
        advice = f"srf init {name} --host HOST --user USER; or `srf init` alone, which asks"
        raise OptionError(f"where is {name!r}? No host is known here by this name", advice=advice)


def _save(
    name: str,
    login: Login,
    connection: dict[str, Any],
    fields: dict[str, Any],
    scheduler: Scheduler,
    *,
    change: bool,
    overwrite: bool,
    json: bool,
) -> None:
    from slurm_ray_flow.blocks.clusters import change_cluster, save_cluster

    if not change and not scheduler.here and login.host is None:
        _check_host_is_known(name, connection)
    use_server()
    if change:
        kind = change_cluster(name, connection, fields)
    else:
        kind = scheduler.kind or ("slurm-cluster" if scheduler.here else "ssh-server")
        save_cluster(kind, name, None if scheduler.here else connection, fields, overwrite=overwrite)
    if json:
        print_json({"name": name, "kind": kind, **filled(host=connection.get("host"))})
    else:
        print_text(f"{name} is saved. `srf check {name}` says whether it can be used.")


def _without_empty(value: Any) -> Any:
    """The value; of a list, its texts that are not empty: an option with one empty text gives an empty list."""
    return [text for text in value if text] if isinstance(value, list) else value


def filled(**fields: Any) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}
