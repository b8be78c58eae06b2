"""What the verbs have in common that look at saved clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_ray_flow.cli.output import tell

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster


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

    connect(ensure_server(tell))
