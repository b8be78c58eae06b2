"""Ending warm allocations: which there are, which of them idle, and what each has cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster, recorded
from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.core.errors import ConnectionFailed, RunError
from slurm_ray_flow.core.run import RunPaths, RunRecord, find_event
from slurm_ray_flow.core.warm import Cost, Warm

RELEASE_SECONDS = 20.0
HARD_SECONDS = 8.0
"""After so long the cluster itself is asked to end it."""
NOT_BEFORE = 10.0
"""A launch notes that its allocation will be warm a little before the cluster knows of it."""


def warm_everywhere(
    records: Iterable[RunRecord], silent: Callable[[ConnectionFailed], None]
) -> Iterator[tuple[Warm, Cluster]]:
    """The warm allocations of all clusters where these runs may have left one; each cluster is asked once.

    Args:
        records: runs from this machine.
        silent: is told of a cluster that does not answer.
    """
    by_cluster: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        if record.warm:
            by_cluster.setdefault((record.cluster, record.root), []).append(record)
    for some in by_cluster.values():
        try:
            cluster = cluster_of(some[0])
            yield from [(one, cluster) for one in warm_noted(cluster, some)]
        except ConnectionFailed as error:
            silent(error)


def warm_on(cluster: Cluster) -> list[Warm]:
    """The warm allocations of a cluster, from whichever machine.

    Raises:
        ConnectionFailed: the cluster does not answer.
    """
    found = [Warm.from_listed(listed) for listed in cluster.ask("warm.listed", root=str(cluster.root_folder))]
    return [one for one in found if _lives(one, cluster)]


def warm_noted(cluster: Cluster, records: Iterable[RunRecord]) -> list[Warm]:
    """The same; of these runs it is noted if theirs is over.

    Raises:
        ConnectionFailed: the cluster does not answer.
    """
    alive = warm_on(cluster)
    there = {one.run_id for one in alive}
    for record in records:
        if record.ended and record.run_id not in there and time.time() - record.ended_at > NOT_BEFORE:
            store.no_longer_warm(record)
    return alive


def _lives(one: Warm, cluster: Cluster) -> bool:
    events = [one.allocated] if one.allocated else []
    return cluster.life(RunPaths(cluster.root_folder, one.allocation), events).alive


def end(one: Warm, cluster: Cluster, force: bool) -> Cost | None:
    """End one that idles; a busy one only by force, with the calls that it has.

    Returns:
        What it cost while it idled; None where it has a call, which goes on.

    Raises:
        RunError: it could not be verified that it is gone.
    """
    if not one.idles and not force:
        return None
    paths = RunPaths(cluster.root_folder, one.allocation)
    for call in one.calls if force else ():
        cluster.write(RunPaths(cluster.root_folder, call).cancel, b"")
    cluster.write(paths.cancel, b"")
    return _awaited(one, paths, cluster, force)


def _awaited(one: Warm, paths: RunPaths, cluster: Cluster, force: bool) -> Cost | None:
    began, hard = time.monotonic(), False
    while time.monotonic() - began < RELEASE_SECONDS:
        events = recorded(cluster, paths.events)
        if released := find_event(events, "released"):
            return Cost.from_released(released)
        if (
            not force
            and (busy := find_event(events, "busy"))
            and one.idle
            and busy.get("time", 0.0) > one.idle.get("time", 0.0)
        ):
            return None  # a call came at this moment
        if not hard and time.monotonic() - began > HARD_SECONDS:
            cluster.cancel(paths)
            hard = True
        if not cluster.life(paths, events).alive:
            return one.cost
        time.sleep(0.1)
    where = f"{cluster.label}, run {one.allocation[:8]}"
    raise RunError("it is not sure that the allocation has ended", where=where, advice="try again")
