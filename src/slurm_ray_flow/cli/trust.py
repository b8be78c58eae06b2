"""`srf trust`: a server's host key becomes known."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slurm_ray_flow.cli.output import Json, Switch, print_json, print_text, tell
from slurm_ray_flow.cli.saved import cluster_named
from slurm_ray_flow.core.errors import HostKeyFailed, OptionError, SlurmRayFlowError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection
    from slurm_ray_flow.blocks.ssh.trust import Shown


def trust(
    host: str,
    *,
    yes: Annotated[bool, Switch] = False,
    fingerprint: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    json: Json = False,
) -> None:
    """Show a server's host key, and make it known if you agree.

    So are those of the servers on the way there. Compare the fingerprint with what the people who run the server say.

    Examples:
        srf trust desi

        srf trust desi --fingerprint SHA256:...

    Args:
        host: A cluster's name, a Host of ~/.ssh/config, or a host's name.
        yes: Agree without being asked.
        fingerprint: Agree to a key of this fingerprint, SHA256:..., and to no other; may be given again.
    """
    agreed = agreement(lambda: yes or _agreed(), fingerprint, shown=tell if json else print_text)
    found = _connection(host).trust(agreed)
    if json:
        print_json([{**dataclasses.asdict(one), "file": str(one.file)} for one in found])
        return
    for shown in found:
        state = "was known already" if shown.known else f"is known now, in {shown.file}"
        print_text(f"The {shown.kind} key {shown.fingerprint} of {shown.name} {state}.")


def agreement(
    ask: Callable[[], bool], fingerprints: Sequence[str], shown: Callable[[str], None] = print_text
) -> Callable[[Shown], bool]:
    """What shows a key, and says whether it is the right one.

    Args:
        ask: asks somebody; not where fingerprints are given.
        fingerprints: of the keys that are right; none where somebody is to be asked.
        shown: where to write.
    """

    def confirm(one: Shown) -> bool:
        shown(f"{one.server} shows the {one.kind} key {one.fingerprint}")
        if fingerprints and one.fingerprint not in fingerprints:
            raise HostKeyFailed(
                f"{one.server} shows a key whose fingerprint you did not give",
                where=f"{one.kind} {one.fingerprint}",
                advice="ask the people who run the server: somebody may stand in between. Nothing was written down",
            )
        return bool(fingerprints) or ask()

    return confirm


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
    try:
        found: SshConnection | None = getattr(cluster_named(host), "connection", None)
    except SlurmRayFlowError:  # no cluster of this name, or no server that would know
        return None
    return found
