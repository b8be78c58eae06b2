"""Warm allocations, whose heads wait for a next call: finding, joining, listing and ending them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.cluster import Cluster, recorded
from slurm_ray_flow.blocks.clusters import cluster_of
from slurm_ray_flow.core.errors import ConnectionFailed, RunError
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.run import RunPaths, RunRecord, find_event
from slurm_ray_flow.core.warm import Cost, Warm
from slurm_ray_flow.remote.shared.protocol import TAKEN
from slurm_ray_flow.tasks.run import Run

NEEDS = (
    "python",
    "isolated",
    "container",
    "ray",
    "dashboard",
    "nodes",
    "cpus",
    "gpus",
    "memory",
    "environment_variables",
)
ASKED_OF_THE_SCHEDULER = (
    "partition",
    "account",
    "qos",
    "constraint",
    "reservation",
    "exclude",
    "sbatch_options",
    "preamble",
)
"""Options of the scheduler that two calls must share to share an allocation."""
_WORDS = {
    "python": "packages or Python",
    "isolated": "packages or Python",
    "cpus": "cpus_per_node",
    "gpus": "gpus_per_node",
    "environment_variables": "env_vars",
    "preamble": "modules, setup or scratch",
}


def folder_of(spec: dict[str, Any], cluster: Cluster) -> PurePosixPath:
    """The folder on the cluster that lists the allocations of this spec."""
    asked = spec.get("scheduler") or {}
    wanted = [*(spec[name] for name in NEEDS), *(asked.get(name) for name in ASKED_OF_THE_SCHEDULER), *_lock_of(spec)]
    needs = json.dumps([str(cluster.prepare()), *wanted], sort_keys=True)
    return cluster.root_folder / "warm" / hashlib.sha256(needs.encode()).hexdigest()[:16]


def _lock_of(spec: dict[str, Any]) -> list[Any]:
    """The lock that an allocation holds: who needs another one, or all of it, can't use its share."""
    lock = spec.get("lock") or {}
    return [lock[name] for name in ("path", "slots", "gpus") if name in lock]


def offer(run: Run, spec: dict[str, Any], cluster: Cluster) -> None:
    """List this run's allocation for later calls."""
    cluster.write(folder_of(spec, cluster) / run.record.attempt, b"")


def take(run: Run, spec: dict[str, Any], cluster: Cluster) -> str | None:
    """Give the call to an idle allocation, or to one that still waits in a scheduler's queue.

    Returns:
        Its id; None where there is none, or another call came first.
    """
    folder = folder_of(spec, cluster)
    if cluster.scheduler is not None:
        return _join_or_offer(run, folder, cluster, spec.get("time_limit"))
    for allocation in cluster.names(folder):
        paths = RunPaths(cluster.root_folder, allocation)
        if not _waits(paths, cluster):
            cluster.remove(folder / allocation)
        elif not cluster.names(paths.folder / "inbox") and _enter(run, allocation, cluster):
            return allocation
    return None


def why_not(run: Run, spec: dict[str, Any], cluster: Cluster) -> str:
    """The reason that the best fitting warm allocation can't take this call; "" without a warm allocation."""
    root = cluster.root_folder
    listed = [Warm.from_listed(one) for one in cluster.ask("warm.listed", root=str(root))]
    others = [(one, RunPaths(root, one.allocation)) for one in listed if one.allocation != run.record.attempt]
    read = cluster.ask_all([("files.read", {"path": str(paths.spec)}) for _, paths in others])
    found = []
    for (one, paths), data in zip(others, read, strict=True):
        with contextlib.suppress(ValueError):  # it goes just then
            found.append((_differing(json.loads(data), json.loads(json.dumps(spec))), one, paths))
    for differing, one, paths in sorted(found, key=lambda each: len(each[0])):
        if cluster.life(paths, recorded(cluster, paths.events)).alive:
            why = f"it differs in {', '.join(differing)}" if differing else _why_closed(one, spec.get("time_limit"))
            return f"the warm Ray cluster of run {one.run_id[:8]} is not joined: {why}"
    return ""


def _differing(theirs: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    asked, wanted = theirs.get("scheduler") or {}, ours.get("scheduler") or {}
    names = [name for name in NEEDS if theirs.get(name) != ours[name]]
    names += [name for name in ASKED_OF_THE_SCHEDULER if asked.get(name) != wanted.get(name)]
    names += ["lock_path or slots of its server"] if _lock_of(theirs) != _lock_of(ours) else []
    return list(dict.fromkeys(_WORDS.get(name, name) for name in names))


def _why_closed(one: Warm, needs: float | None) -> str:
    if one.allocated is None:
        return "its job has not begun yet, and is too short for one more call"
    if one.calls:
        return "it has a call just now"
    left = (one.idle or {}).get("ends", time.time() + (needs or 0.0)) - time.time()
    if needs is not None and left < needs:
        return f"its job ends in {format_duration(left)}, and this call may take {format_duration(needs)}"
    return "it was started by another version of this package, or ends just now"


def _join_or_offer(run: Run, folder: PurePosixPath, cluster: Cluster, needs: float | None) -> str | None:
    root, run_id = str(cluster.root_folder), run.record.attempt
    while True:
        allocation = cluster.ask("warm.join_or_offer", root=root, folder=str(folder), run_id=run_id, needs=needs)
        if allocation is None:
            return None
        paths = RunPaths(cluster.root_folder, str(allocation))
        if cluster.life(paths, recorded(cluster, paths.events)).alive:
            return str(allocation)
        cluster.remove(folder / str(allocation))
        cluster.remove(run.paths.inbox(str(allocation)))


def _waits(paths: RunPaths, cluster: Cluster) -> bool:
    events = recorded(cluster, paths.events)
    began, over = find_event(events, "allocated"), find_event(events, "released")
    return began is not None and over is None and cluster.life(paths, events).alive


def _enter(run: Run, allocation: str, cluster: Cluster) -> bool:
    """Enter an allocation's inbox. Of two calls at once the one whose id sorts first stays, if it has not begun."""
    entry = run.paths.inbox(allocation)
    if not cluster.announce(entry):
        return False
    first = min(cluster.names(entry.parent), default="")
    if first in {"", entry.name}:
        return True
    return not cluster.remove(entry) and _was_taken(run, entry, cluster)


def _was_taken(run: Run, entry: PurePosixPath, cluster: Cluster) -> bool:
    """Whether a vanished entry was taken by the head: it may have been removed, and the answer to that lost."""
    return entry.name + TAKEN in cluster.names(entry.parent) or bool(cluster.read(run.paths.events))


RELEASE_SECONDS = 20.0
HARD_SECONDS = 8.0
"""Seconds after which the cluster's scheduler is asked to end an allocation."""
NOT_BEFORE = 10.0
"""Seconds that a launch may note its allocation as warm before the cluster lists it."""


def warm_everywhere(
    records: Iterable[RunRecord], silent: Callable[[ConnectionFailed], None]
) -> Iterator[tuple[Warm, Cluster]]:
    """The warm allocations of all clusters of these runs; each cluster is asked once.

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
    """The warm allocations of a cluster, whichever machine started them.

    Raises:
        ConnectionFailed: the cluster does not answer.
    """
    return living(cluster, cluster.ask("warm.listed", root=str(cluster.root_folder)))


def living(cluster: Cluster, listed: Iterable[Any]) -> list[Warm]:
    """Those of the listed allocations of a cluster that live.

    Raises:
        ConnectionFailed: the cluster does not answer, or lists something else.
    """
    return [one for one in map(Warm.from_listed, listed) if _lives(one, cluster)]


def warm_noted(cluster: Cluster, records: Iterable[RunRecord]) -> list[Warm]:
    """The warm allocations of a cluster; records of runs whose allocation has ended are updated.

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
    """End an idle allocation; a busy one only with `force`, and its calls with it.

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
