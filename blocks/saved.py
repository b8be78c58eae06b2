"""The clusters that somebody has saved as blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

from prefect.blocks.core import Block
from pydantic import ValidationError

from slurm_ray_flow.blocks.clusters import KINDS, find_cluster, saved_names
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.core.errors import OptionError

Fields = dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A saved cluster: its name, its kind, and the machine it leads to."""

    name: str
    kind: str
    host: str

    @property
    def slug(self) -> str:
        """What finds exactly this one."""
        return f"{self.kind}/{self.name}"


def saved_clusters() -> list[Saved]:
    """All of them, by name."""
    found = [(kind.get_block_type_slug(), name) for kind in KINDS for name in saved_names(kind)]
    return [Saved(name, kind, _host(f"{kind}/{name}")) for kind, name in sorted(found, key=lambda one: one[1])]


def _host(slug: str) -> str:
    try:
        connection = getattr(find_cluster(slug), "connection", None)
    except (OptionError, ValidationError):  # an older or newer version saved it
        return "?"
    return "this machine" if connection is None else str(connection.host)


def save_ssh_server(name: str, connection: Fields, server: Fields, *, overwrite: bool = False) -> None:
    """Save an SSH server and its connection under one name.

    Args:
        name: lower-case letters, digits and dashes.
        connection, server: the fields of the two blocks; what is left out has its default.
        overwrite: replace blocks of that name.

    Raises:
        OptionError: a field is wrong, or the name is taken or none.
    """
    if name == "local":
        raise OptionError("'local' is this machine", advice="choose another name")
    if not re.fullmatch("[a-z0-9-]+", name):
        raise OptionError(f"{name!r} can't be a cluster's name", advice="write lower-case letters, digits, dashes")
    kind = _ssh_server()
    if not overwrite and (name in saved_names(kind) or name in saved_names(SshConnection)):
        advice = "choose another name, or give --change or --overwrite"
        raise OptionError(f"there is a cluster {name!r} already", advice=advice)
    _save(name, connection, server)


def change_ssh_server(name: str, connection: Fields, server: Fields) -> None:
    """Change fields of a saved SSH server and its connection; the others stay as they are.

    Raises:
        OptionError: a field is wrong, or no SSH server has this name.
    """
    found = find_cluster(f"{_ssh_server().get_block_type_slug()}/{name}")
    known = cast(Block, found), cast(Block, getattr(found, "connection", None))
    server_fields, connection_fields = (_fields(block) for block in known)
    _save(name, {**connection_fields, **connection}, {**server_fields, **server})


def _ssh_server() -> type[Block]:
    return next(kind for kind in KINDS if kind.get_block_type_slug() == "ssh-server")


def _fields(block: Block) -> Fields:
    return {name: getattr(block, name) for name in type(block).model_fields}


def _save(name: str, connection: Fields, server: Fields) -> None:
    reached = cast(SshConnection, _made(SshConnection, connection))
    cluster = _made(_ssh_server(), {**server, "connection": reached})
    reached.save(name, overwrite=True)
    cluster.save(name, overwrite=True)


def _made(kind: type[Block], fields: Fields) -> Block:
    try:
        return kind(**fields)
    except ValidationError as error:
        # Pydantic's own text would show what was given, secrets included.
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise OptionError(f"this is no {kind.get_block_type_name()}: {wrong}") from None
