"""Confirmation of the commands in saved clusters, on Prefect servers where others can write blocks.

A block names set-up lines, a Python, a container, a configuration of OpenSSH: whoever can change it can run code as its
user, on the cluster or at home. On the server of this package only its user can change blocks.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from slurm_ray_flow.blocks.files import write_whole
from slurm_ray_flow.blocks.server.address import read_state
from slurm_ray_flow.blocks.server.client import api_in_use
from slurm_ray_flow.blocks.server.files import server_files
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.home import home

CLUSTER = (
    *("root", "python", "modules", "setup", "sbatch_options", "oarsub_options"),
    *("container", "container_options", "container_python"),
)
CONNECTION = ("host", "user", "port", "proxy_jump", "known_hosts", "key_file", "config_file")
Executed = dict[str, str]


class Unconfirmed(OptionError):
    """The commands of a saved cluster are not those that its user confirmed."""


def executed(block: Any) -> Executed:
    """The fields of a cluster and its connection that decide which commands run, and where; each as text."""
    fields = {name: getattr(block, name, None) for name in CLUSTER}
    connection = getattr(block, "connection", None)
    fields.update({name: getattr(connection, name, None) for name in CONNECTION})
    return {name: _text(value) for name, value in fields.items() if value not in (None, "", [])}


def confirm(slug: str, block: Any) -> None:
    """Save the present fields of a cluster as confirmed.

    Args:
        slug: its kind and name, "slurm-cluster/curnagl".
        block: the cluster.
    """
    confirmed = {**_confirmed(), _key(slug): executed(block)}
    write_whole(home() / "confirmed_clusters.json", json.dumps(confirmed, indent=1).encode())


def check_confirmed(slug: str, block: Any) -> None:
    """Check that the commands of a saved cluster are confirmed on this machine, and ask where they are not.

    Raises:
        Unconfirmed: they are not, and nobody agrees in a terminal.
    """
    if not others_can_write():
        return
    changed = changes(slug, block)
    if not changed:
        return
    from slurm_ray_flow.blocks.ssh.authentication import agreed

    if not agreed(f"{described(slug, changed)}\nUse it? Type yes: "):
        name = slug.rpartition("/")[2]
        raise Unconfirmed(described(slug, changed), advice=f"look at it, and confirm it: `srf trust {name} --block`")
    confirm(slug, block)


def changes(slug: str, block: Any) -> Executed:
    """The present fields that differ from the confirmed ones; all fields where none were confirmed."""
    now, known = executed(block), _confirmed().get(_key(slug), {})
    return {name: now.get(name, "nothing") for name in (*CONNECTION, *CLUSTER) if now.get(name) != known.get(name)}


def described(slug: str, changed: Executed) -> str:
    """The fields in words, with a line for each."""
    lines = "".join(f"\n    {name}: {value}" for name, value in changed.items())
    return f"the cluster {slug!r}, as Prefect has it, is not what you confirmed on this machine:{lines}"


def others_can_write() -> bool:
    """Whether other users may write blocks on the Prefect server in use, because it is not this package's own."""
    api, state = api_in_use(), read_state(server_files())
    return api is not None and (state is None or state.url != api.url)


def _key(slug: str) -> str:
    api = api_in_use()
    return f"{api.url if api else None} {slug}"


def _confirmed() -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        clusters = json.loads((home() / "confirmed_clusters.json").read_text())
        return clusters if isinstance(clusters, dict) else {}
    return {}


def _text(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False) if isinstance(value, list) else str(value)
