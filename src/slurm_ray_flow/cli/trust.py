"""`srf trust`: a server's host key becomes known."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from slurm_ray_flow.cli.names import A_CLUSTER, cluster_named, use_server
from slurm_ray_flow.cli.output import Json, Switch, print_json, print_text, tell
from slurm_ray_flow.core.errors import HostKeyFailed, OptionError, SlurmRayFlowError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.ssh import SshConnection
    from slurm_ray_flow.blocks.ssh.trust import ShownKey


def trust(
    host: Annotated[str, A_CLUSTER],
    *,
    yes: Annotated[bool, Switch] = False,
    fingerprint: Annotated[tuple[str, ...], Parameter(negative="", show_default=False)] = (),
    block: Annotated[bool, Switch] = False,
    json: Json = False,
) -> None:
    """Show a server's host key, and make it known if you agree.

    So are those of the servers on the way there. Compare the fingerprint with what the people who run the server say.

    With --block it is about what a saved cluster has executed: on a Prefect server that others can write, somebody
    else may have changed it, and it is used only as you have confirmed it on this machine.

    Examples:
        srf trust desi

        srf trust desi --fingerprint SHA256:...

        srf trust curnagl --block

    Args:
        host: A cluster's name, a Host of ~/.ssh/config, or a host's name.
        yes: Agree without being asked.
        fingerprint: Agree to a key of this fingerprint, SHA256:..., and to no other; may be given again.
        block: Confirm what a saved cluster has executed, instead of a host key.
    """
    if block:
        _confirm_block(host, yes=yes, json=json)
        return
    agreed = agreement(lambda: yes or _confirmed(), fingerprint, write=tell if json else print_text)
    keys = _connection(host).trust(agreed)
    if json:
        print_json([{**dataclasses.asdict(key), "file": str(key.file)} for key in keys])
        return
    for key in keys:
        state = "was known already" if key.known else f"is known now, in {key.file}"
        print_text(f"The {key.kind} key {key.fingerprint} of {key.name} {state}.")


def _confirm_block(name: str, *, yes: bool, json: bool) -> None:
    from slurm_ray_flow.blocks import trusted
    from slurm_ray_flow.blocks.clusters import find_cluster, slug_of

    use_server()
    block = find_cluster(name, to_look=True)
    slug = slug_of(block)
    changed = trusted.changes(slug, block)
    if changed and not yes:
        (tell if json else print_text)(trusted.described(slug, changed))
        if not _confirmed("Use it? Type yes: ", instead="--yes, once you have looked at what stands above"):
            raise OptionError("it was not confirmed", where=slug)
    trusted.confirm(slug, block)
    if json:
        print_json({"cluster": slug, "changed": changed})
    else:
        print_text(f"What {slug} has executed is confirmed." if changed else f"{slug} is as you have confirmed it.")


def agreement(
    ask: Callable[[], bool], fingerprints: Sequence[str], write: Callable[[str], None] = print_text
) -> Callable[[ShownKey], bool]:
    """The function that shows a key and asks whether it is the right one.

    Args:
        ask: asks the user, where no fingerprints are given.
        fingerprints: the fingerprints of the right keys; none to ask the user.
        write: writes a line for the user.
    """

    def confirm(key: ShownKey) -> bool:
        write(f"{key.server} shows the {key.kind} key {key.fingerprint}")
        if fingerprints and key.fingerprint not in fingerprints:
            raise HostKeyFailed(
                f"{key.server} shows a key whose fingerprint you did not give",
                where=f"{key.kind} {key.fingerprint}",
                advice="ask the people who run the server: somebody may stand in between. Nothing was written down",
            )
        return bool(fingerprints) or ask()

    return confirm


def _confirmed(
    question: str = "Is this the server's key? Type yes to trust it: ",
    instead: str = "--fingerprint SHA256:..., or --yes if you need not compare",
) -> bool:
    if not sys.stdin.isatty():
        raise OptionError("there is no terminal to ask in", advice=f"give {instead}")
    return input(question).strip().lower() == "yes"


def _connection(host: str) -> SshConnection:
    from slurm_ray_flow.blocks.ssh import SshConnection

    return _saved_connection(host) or SshConnection(host=host)


def _saved_connection(host: str) -> SshConnection | None:
    """The connection of the saved cluster of this name."""
    try:
        connection: SshConnection | None = getattr(cluster_named(host, to_look=True), "connection", None)
    except SlurmRayFlowError:  # no cluster of this name, or no server that would know
        return None
    return connection
