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
    values = [*(spec[name] for name in NEEDS), *(asked.get(name) for name in ASKED_OF_THE_SCHEDULER), *_lock_of(spec)]
    needs = json.dumps([str(cluster.prepare()), *values], sort_keys=True)
    return cluster.root_folder / "warm" / hashlib.sha256(needs.encode()).hexdigest()[:16]


def _lock_of(spec: dict[str, Any]) -> list[Any]:
    """The lock that an allocation holds: only a call that needs the same lock and share can join it."""
    lock = spec.get("lock") or {}
    return [lock[name] for name in ("path", "slots", "gpus") if name in lock]


def offer(run: Run, spec: dict[str, Any], cluster: Cluster) -> None:
    """List this run's allocation for later calls."""
    cluster.write(folder_of(spec, cluster) / run.record.attempt, b"")


def take(run: Run, spec: dict[str, Any], cluster: Cluster) -> str | None:
    """Give the call to an idle allocation, or to one that still waits in a scheduler's queue.

    Returns:
        The allocation's id; None where there is none, or another call came first.
    """
    folder = folder_of(spec, cluster)
    if cluster.scheduler is not None:
        return _join_or_offer(run, folder, cluster, spec.get("time_limit"))
    for allocation in cluster.names(folder):
        paths = RunPaths(cluster.root_folder, allocation)
        if not _takes_calls(paths, cluster):
            cluster.remove(folder / allocation)
        elif not cluster.names(paths.folder / "inbox") and _enter_inbox(run, allocation, cluster):
            return allocation
    return None


def why_not_joined(run: Run, spec: dict[str, Any], cluster: Cluster) -> str:
    """The reason that the best fitting warm allocation can't take this call; "" without a warm allocation."""
    root = cluster.root_folder
    listed = [Warm.from_listed(warm) for warm in cluster.ask("warm.listed", root=str(root))]
    candidates = [(warm, RunPaths(root, warm.allocation)) for warm in listed if warm.allocation != run.record.attempt]
    specs = cluster.ask_all([("files.read", {"path": str(paths.spec)}) for _, paths in candidates])
    compared = []
    for (warm, paths), data in zip(candidates, specs, strict=True):
        with contextlib.suppress(ValueError):  # the allocation ends at this moment
            compared.append((_differences(json.loads(data), json.loads(json.dumps(spec))), warm, paths))
    for differing, warm, paths in sorted(compared, key=lambda entry: len(entry[0])):
        if cluster.life(paths, recorded(cluster, paths.events)).alive:
            why = f"it differs in {', '.join(differing)}" if differing else _why_refused(warm, spec.get("time_limit"))
            return f"the warm Ray cluster of run {warm.run_id[:8]} is not joined: {why}"
    return ""


def _differences(warm_spec: dict[str, Any], spec: dict[str, Any]) -> list[str]:
    warm_options, options = warm_spec.get("scheduler") or {}, spec.get("scheduler") or {}
    names = [name for name in NEEDS if warm_spec.get(name) != spec[name]]
    names += [name for name in ASKED_OF_THE_SCHEDULER if warm_options.get(name) != options.get(name)]
    names += ["lock_path or slots of its server"] if _lock_of(warm_spec) != _lock_of(spec) else []
    return list(dict.fromkeys(_WORDS.get(name, name) for name in names))


def _why_refused(warm: Warm, needs: float | None) -> str:
    if warm.allocated is None:
        return "its job has not begun yet, and is too short for one more call"
    if warm.calls:
        return "it has a call just now"
    remaining = (warm.idle or {}).get("ends", time.time() + (needs or 0.0)) - time.time()
    if needs is not None and remaining < needs:
        return f"its job ends in {format_duration(remaining)}, and this call may take {format_duration(needs)}"
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


def _takes_calls(paths: RunPaths, cluster: Cluster) -> bool:
    events = recorded(cluster, paths.events)
    allocated, released = find_event(events, "allocated"), find_event(events, "released")
    return allocated is not None and released is None and cluster.life(paths, events).alive


def _enter_inbox(run: Run, allocation: str, cluster: Cluster) -> bool:
    """Enter an allocation's inbox. Of two calls at once, the call whose id sorts first stays."""
    entry = run.paths.inbox(allocation)
    if not cluster.announce(entry):
        return False
    first = min(cluster.names(entry.parent), default="")
    if first in {"", entry.name}:
        return True
    return not cluster.remove(entry) and _was_taken(run, entry, cluster)


def _was_taken(run: Run, entry: PurePosixPath, cluster: Cluster) -> bool:
    """Whether the head took a vanished entry; else its removal succeeded, and only the answer was lost."""
    return entry.name + TAKEN in cluster.names(entry.parent) or bool(cluster.read(run.paths.events))


RELEASE_SECONDS = 20.0
HARD_SECONDS = 8.0
"""Seconds after which the cluster's scheduler is asked to end an allocation."""
LISTING_SECONDS = 10.0
"""Seconds that may pass from a launch's note of a warm allocation until the cluster lists it."""


def warm_everywhere(
    records: Iterable[RunRecord], silent: Callable[[ConnectionFailed], None]
) -> Iterator[tuple[Warm, Cluster]]:
    """The warm allocations of all clusters of these runs; each cluster is asked once.

    Args:
        records: runs from this machine.
        silent: receives the error of a cluster that does not answer.
    """
    by_cluster: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        if record.warm:
            by_cluster.setdefault((record.cluster, record.root), []).append(record)
    for cluster_records in by_cluster.values():
        try:
            cluster = cluster_of(cluster_records[0])
            yield from [(warm, cluster) for warm in warm_noted(cluster, cluster_records)]
        except ConnectionFailed as error:
            silent(error)


def warm_on(cluster: Cluster) -> list[Warm]:
    """The warm allocations of a cluster, whichever machine started them.

    Raises:
        ConnectionFailed: the cluster does not answer.
    """
    return living_allocations(cluster, cluster.ask("warm.listed", root=str(cluster.root_folder)))


def living_allocations(cluster: Cluster, listed: Iterable[Any]) -> list[Warm]:
    """The listed allocations of a cluster whose heads are alive.

    Raises:
        ConnectionFailed: the cluster does not answer, or lists what is no allocation.
    """
    return [warm for warm in map(Warm.from_listed, listed) if _lives(warm, cluster)]


def warm_noted(cluster: Cluster, records: Iterable[RunRecord]) -> list[Warm]:
    """The warm allocations of a cluster; records of runs whose allocation has ended are updated.

    Raises:
        ConnectionFailed: the cluster does not answer.
    """
    alive = warm_on(cluster)
    living_runs = {warm.run_id for warm in alive}
    for record in records:
        if record.ended and record.run_id not in living_runs and time.time() - record.ended_at > LISTING_SECONDS:
            store.no_longer_warm(record)
    return alive


def _lives(warm: Warm, cluster: Cluster) -> bool:
    events = [warm.allocated] if warm.allocated else []
    return cluster.life(RunPaths(cluster.root_folder, warm.allocation), events).alive


def end(warm: Warm, cluster: Cluster, force: bool) -> Cost | None:
    """End an idle allocation; a busy one only with `force`, and its calls with it.

    Returns:
        The cost of its idle time; None where it has a call, which goes on.

    Raises:
        RunError: it could not be verified that the allocation is gone.
    """
    if not warm.idles and not force:
        return None
    paths = RunPaths(cluster.root_folder, warm.allocation)
    for call in warm.calls if force else ():
        cluster.write(RunPaths(cluster.root_folder, call).cancel, b"")
    cluster.write(paths.cancel, b"")
    return _await_release(warm, paths, cluster, force)


def _await_release(warm: Warm, paths: RunPaths, cluster: Cluster, force: bool) -> Cost | None:
    started, hard = time.monotonic(), False
    while time.monotonic() - started < RELEASE_SECONDS:
        events = recorded(cluster, paths.events)
        if released := find_event(events, "released"):
            return Cost.from_released(released)
        if (
            not force
            and (busy := find_event(events, "busy"))
            and warm.idle
            and busy.get("time", 0.0) > warm.idle.get("time", 0.0)
        ):
            return None  # a call came at this moment
        if not hard and time.monotonic() - started > HARD_SECONDS:
            cluster.cancel(paths)
            hard = True
        if not cluster.life(paths, events).alive:
            return warm.cost
        time.sleep(0.1)
    where = f"{cluster.label}, run {warm.allocation[:8]}"
    raise RunError("it is not sure that the allocation has ended", where=where, advice="try again")
