"""The SSH connection to a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, SecretStr, field_validator

from slurm_ray_flow.blocks.block_documents import BlockFields
from slurm_ray_flow.blocks.processes import withhold
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint, SshSettings, password_variable, resolved

if TYPE_CHECKING:  # only who logs in waits for paramiko
    from slurm_ray_flow.blocks.ssh.agent import Agent
    from slurm_ray_flow.blocks.ssh.authentication import Secrets
    from slurm_ray_flow.blocks.ssh.connection import Connection
    from slurm_ray_flow.blocks.ssh.trust import ShownKey


class SshConnection(BlockFields):
    """How to reach a host by SSH. OpenSSH's configuration (~/.ssh/config) completes empty fields."""

    _block_type_name = "SSH Connection"
    _block_type_slug = "ssh-connection"
    _description = "How slurm-ray-flow reaches a host by SSH; host keys are always checked."

    kind: ClassVar[str] = "ssh-connection"

    host: str = Field(min_length=1, description="A Host of ~/.ssh/config, a name or an address.")
    user: str = Field(default="", description="The user's name there; empty for what ~/.ssh/config says.")
    port: int | None = Field(default=None, ge=1, le=65535, description="The port; empty for what ~/.ssh/config says.")
    key_file: Path | None = Field(
        default=None, title="Key file", description="The private key to log in with; empty for what ~/.ssh/config says."
    )
    password: SecretStr | None = Field(
        default=None, description="The password, where a key is not enough; else from the environment."
    )
    proxy_jump: list[str] | None = Field(
        default=None,
        title="Jump hosts",
        description="Servers to pass on the way, user@host:port each; empty for what ~/.ssh/config says.",
    )
    known_hosts: Path | None = Field(
        default=None, title="Known hosts", description="The file of known host keys; empty for OpenSSH's own."
    )
    config_file: Path | None = Field(
        default=None, title="Configuration", description="Another file than ~/.ssh/config."
    )
    connect_timeout: float = Field(
        default=15.0, gt=0, title="Connect timeout", description="Seconds for one try to connect."
    )
    reconnect_within: float = Field(
        default=3600.0,
        ge=0,
        title="Reconnect within",
        description="Seconds for which a lost connection is tried again before a launch gives up.",
    )

    @field_validator("proxy_jump", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    def endpoint(self) -> Endpoint:
        """The endpoint of the block's settings and of OpenSSH's configuration."""
        return resolved(self.wanted())

    def wanted(self) -> SshSettings:
        """The settings of the block."""
        through = None if self.proxy_jump is None else tuple(self.proxy_jump)
        return SshSettings(
            self.host, self.user, self.port, self.key_file, self.known_hosts, through or None, self.config_file
        )

    def open(self, label: str = "") -> Connection:
        """The connection of this process, which its first use opens.

        Args:
            label: the user's name for the cluster, and so for the variable of its password.
        """
        from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts, shared

        name = label or self._block_document_name or self.host
        withhold(password_variable(name))
        endpoint = self.endpoint()
        reconnect = self.reconnect_within
        timeouts = ConnectionTimeouts(
            connect=self.connect_timeout, first=min(ConnectionTimeouts.first, reconnect), again=reconnect
        )
        return shared(endpoint, self._secrets(endpoint, name), timeouts, name, hash(self._password))

    def trust(self, confirm: Callable[[ShownKey], bool]) -> list[ShownKey]:
        """Save the host keys of the server and of its jump hosts that `confirm` accepts."""
        from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts
        from slurm_ray_flow.blocks.ssh.trust import trust

        endpoint = self.endpoint()
        name = self._block_document_name or self.host
        return trust(
            endpoint, self._secrets(endpoint, name), confirm, ConnectionTimeouts(connect=self.connect_timeout), name
        )

    @property
    def _password(self) -> str:
        return self.password.get_secret_value() if self.password else ""

    def _secrets(self, endpoint: Endpoint, name: str) -> Callable[[Endpoint], Secrets]:
        from slurm_ray_flow.blocks.ssh import authentication
        from slurm_ray_flow.blocks.ssh.authentication import Secrets

        def secrets(server: Endpoint) -> Secrets:
            variable = password_variable(name if server == endpoint else server.name)
            block_password = self._password if server == endpoint else ""
            return Secrets(
                block_password or os.environ.get(variable, ""), partial(authentication.ask, variable=variable), variable
            )

        return secrets

    def agent(self, root: str, python: str = "", label: str = "") -> Agent:
        """The agent on the host, which the first request starts.

        Args:
            root: the root on the host: absolute, or "~/...".
            python: "" for the best Python there, a path, or "module:NAME".
            label: the user's name for the cluster.
        """
        from slurm_ray_flow.blocks.ssh.agent import Agent

        opened = self.open(label)
        name = label or self._block_document_name or self.host
        agent: Agent = opened.agents.setdefault((root, python), Agent(opened, root, python, name))
        return agent
