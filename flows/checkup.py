"""Looks who has each shared server, also from outside this Prefect, and makes Prefect show it."""

from __future__ import annotations

from prefect import flow, get_run_logger

from slurm_ray_flow.blocks.saved import saved_clusters
from slurm_ray_flow.core.errors import ConnectionFailed
from slurm_ray_flow.tasks.check_up import Seen, check_up


@flow(name="checkup")
def checkup(cluster: str = "") -> list[Seen]:
    """Mirror the lock of one server, or of all that are saved: limit and artifact; an event where one is silent.

    Args:
        cluster: its name; empty for all.

    Raises:
        ConnectionFailed: a server did not answer; the others were seen to.
        ServerError: Prefect has no API that others can reach.
    """
    names = [cluster] if cluster else [saved.slug for saved in saved_clusters()]
    found = [seen for name in names if (seen := check_up(name)) is not None]
    for silent in (seen for seen in found if seen.queue is None):
        get_run_logger().warning("%s gave no answer: %s", silent.cluster, silent.why)
    if cluster and found and found[0].queue is None:
        raise ConnectionFailed(found[0].why, where=cluster, advice=f"srf check {cluster} says more")
    return found
