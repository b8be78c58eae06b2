"""What the verbs have in common that look at saved clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_ray_flow.cli.output import tell

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster


def cluster_named(name: str, *, to_look: bool = False) -> Cluster:
    """A cluster by its name; only for a saved one a server is needed.

    Args:
        name: as `find_cluster` takes it.
        to_look: as `find_cluster` takes it.

    Raises:
        OptionError: there is none of this name, or it is not what was confirmed.
    """
    from slurm_ray_flow.blocks.clusters import find_cluster

    if name != "local":
        use_server()
    return find_cluster(name, to_look=to_look)


def use_server() -> None:
    """Have Prefect in this process use the server that launches use, where the blocks are."""
    from slurm_ray_flow.blocks.server import connect, ensure_server

    connect(ensure_server(tell))
