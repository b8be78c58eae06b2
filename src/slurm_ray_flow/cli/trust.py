"""`srf trust`: a server's host key becomes known."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slurm_ray_flow.cli.output import print_text
from slurm_ray_flow.core.errors import HostKeyFailed, OptionError, SlurmRayFlowError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection
    from slurm_ray_flow.blocks.ssh.trust import Shown


def trust(
    host: str,
    *,
    yes: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    fingerprint: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
) -> None:
    """Show the host key of a server, and those of the servers on the way there, and make them known if you agree.

    Compare the fingerprint with what the people who run the server say.

    Args:
        host: A cluster's name, a Host of ~/.ssh/config, or a host's name.
        yes: Agree without being asked.
        fingerprint: Agree to a key of this fingerprint, SHA256:..., and to no other; may be given again.
    """

    def confirm(shown: Shown) -> bool:
        print_text(f"{shown.server} shows the {shown.kind} key {shown.fingerprint}")
        if fingerprint and shown.fingerprint not in fingerprint:
            raise HostKeyFailed(
                f"{shown.server} shows a key whose fingerprint you did not give",
                where=f"{shown.kind} {shown.fingerprint}",
                advice="ask the people who run the server: somebody may stand in between. Nothing was written down",
            )
        return bool(fingerprint) or yes or _agreed()

    for shown in _connection(host).trust(confirm):
        state = "was known already" if shown.known else f"is known now, in {shown.file}"
        print_text(f"The {shown.kind} key {shown.fingerprint} of {shown.name} {state}.")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise OptionError(
            "there is no terminal to ask in", advice="give --fingerprint SHA256:..., or --yes if you need not compare"
        )
    return input("Is this the server's key? Type yes to trust it: ").strip().lower() == "yes"


def _connection(host: str) -> SshConnection:
    from slurm_ray_flow.blocks.ssh import SshConnection

    return _saved(host) or SshConnection(host=host)


def _saved(host: str) -> SshConnection | None:
    """How a saved cluster of this name is reached."""
    from slurm_ray_flow.cli.clusters import cluster_named

    try:
        found: SshConnection | None = getattr(cluster_named(host), "connection", None)
    except SlurmRayFlowError:  # no cluster of this name, or no server that would know
        return None
    return found
