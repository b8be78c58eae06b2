"""Our own connections to the test hosts."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hosts.lab import Lab
from slurm_ray_flow.blocks.ssh.agent import Agent
from slurm_ray_flow.blocks.ssh.authentication import Secrets
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.blocks.ssh.connection import Connection, ConnectionTimeouts
from slurm_ray_flow.core.errors import LogInFailed

Prompt = Callable[[str, bool], str]


def nobody(text: str, seen: bool) -> str:
    raise LogInFailed("nobody can be asked", where=text)


@contextlib.contextmanager
def connected(
    lab: Lab,
    host: str,
    user: str,
    *,
    password: str = "",
    prompt: Prompt = nobody,
    limits: ConnectionTimeouts | None = None,
    config: Path | None = None,
    **fields: Any,
) -> Iterator[Connection]:
    """A connection of its own, which is not shared with other tests."""
    block = SshConnection(host=host, user=user, config_file=config or lab.ssh_config, **fields)
    held = ConnectionTimeouts(first=5) if limits is None else limits
    connection = Connection(block.endpoint(), lambda _: Secrets(password, prompt, "DESI_PASSWORD"), held, host)
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def agent_on(lab: Lab, host: str = "desi", user: str = "frank", root: str = "", **options: Any) -> Iterator[Agent]:
    """Our program on a host, in a root of its own."""
    with connected(lab, host, user, **options) as connection:
        yield Agent(connection, root or f"~/ssh-{os.getpid()}-{secrets.token_hex(4)}", "", host)
