"""Names of runs and clusters: their completion, and the cluster of a name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from cyclopts import Parameter

from slurm_ray_flow.cli.output import tell
from slurm_ray_flow.core.errors import ServerError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster


MOST_RUNS = 50
KINDS = {"local-machine": "local", "ssh-server": "SSH", "slurm-cluster": "Slurm", "oar-cluster": "OAR"}
"""The kinds of cluster, each with its word for tables."""


def runs() -> Iterator[tuple[str, str]]:
    """The latest runs for completion, each with a description."""
    from slurm_ray_flow.blocks import store

    for record in islice(store.records(), MOST_RUNS):
        yield record.run_id[:8], f"{record.function} on {record.cluster}"


def clusters() -> list[str]:
    """The saved clusters for completion; without a running server none is started."""
    from slurm_ray_flow.blocks.block_documents import saved_names
    from slurm_ray_flow.blocks.server.client import api_in_use

    api = api_in_use()
    try:
        return ["local", *(name for kind in KINDS for name in (saved_names(api, kind) if api else []))]
    except ServerError:
        return ["local"]


def completed_from(names: Callable[[], Any]) -> Parameter:
    """The completion of an argument, which an older cyclopts lacks."""
    if "completer" not in inspect.signature(Parameter).parameters:
        return Parameter()
    return Parameter(completer=lambda _: names())


A_RUN, A_CLUSTER = completed_from(runs), completed_from(clusters)


def cluster_named(name: str, *, to_look: bool = False) -> Cluster:
    """A cluster by its name; only a saved one needs Prefect's server.

    Args:
        name: as `find_cluster` takes it.
        to_look: as `find_cluster` takes it.

    Raises:
        OptionError: there is no cluster of this name, or it is not as it was confirmed.
    """
    from slurm_ray_flow.blocks.clusters import find_cluster
    from slurm_ray_flow.blocks.server import ensure_server

    if name != "local":
        ensure_server(tell)
    return find_cluster(name, to_look=to_look)


def use_server() -> None:
    """Have Prefect in this process use the server that launches use, where the blocks are."""
    from slurm_ray_flow.blocks.server import connect, ensure_server

    connect(ensure_server(tell))
