"""Look at a saved cluster on a schedule, and tell Prefect what is new: who has it, whether it is down, what idles."""

from __future__ import annotations

import dataclasses
import time

from prefect import task
from prefect.runtime import flow_run

from slurm_ray_flow.blocks.artifacts import Artifact, update_artifact
from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.blocks.lock_mirror import mirror
from slurm_ray_flow.blocks.server import variables
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.client import needed_api
from slurm_ray_flow.core.artifacts import artifact_key, short_name
from slurm_ray_flow.core.cluster_report import ClusterReport, Health, looked
from slurm_ray_flow.core.errors import ConnectionFailed, ServerError, SlurmRayFlowError
from slurm_ray_flow.core.lock import LockQueue, queue_rows
from slurm_ray_flow.tasks.cluster_report import Part, report
from slurm_ray_flow.tasks.page import emit
from slurm_ray_flow.tasks.retry import ONCE


@task(name="check_up", task_run_name="check_up {name}", **ONCE)
def check_up(name: str, idle_minutes: float) -> ClusterReport:
    """Look at one cluster. Prefect gets an event where it goes down or comes up, or a Ray cluster idles for so long.

    Raises:
        ServerError: Prefect's API can't be reached.
    """
    api, short = needed_api(), short_name(name)
    before = Health.from_json(variables.recall(api, "health", short))
    if time.time() < before.again:
        return ClusterReport(short, ConnectionFailed(before.why), health=before)
    seen = _seen(api, name, "lock", "scheduler", "idle")
    after, news = looked(before, seen, idle_minutes * 60, time.time())
    for notice in news:
        emit(notice)
    if after != before:
        variables.remember(api, "health", short, after.to_json())
    return dataclasses.replace(seen, health=after)


@task(name="mirror_lock", task_run_name="mirror_lock {name}", **ONCE)
def mirror_lock(name: str) -> ClusterReport | None:
    """Make Prefect's limit show who has the server, and write it down as an artifact.

    Returns:
        What was found; None for a cluster without a lock.

    Raises:
        ServerError: Prefect's API can't be reached.
    """
    seen = _seen(needed_api(), name, "lock")
    return seen if seen.down or seen.lock else None


def _seen(api: Api, name: str, *parts: Part) -> ClusterReport:
    """The report of a saved cluster, whose lock is shown in Prefect by the way."""
    try:
        cluster = find_cluster(name)
    except ServerError:
        raise
    except SlurmRayFlowError as error:
        return ClusterReport(short_name(name), error)
    seen = report(cluster, *parts)
    if cluster.lock and seen.lock:
        mirror(api, seen.cluster, cluster.lock.slots, seen.lock)
        _write_down(api, short_name(seen.cluster), seen.lock)
    return seen


def _write_down(api: Api, name: str, queue: LockQueue) -> None:
    who = ", ".join(holder.user for holder in queue.holders)
    text = f"{name}: " + (f"held by {who}, {len(queue.waiting)} wait" if who else "free")
    table = queue_rows(queue, time.time())
    update_artifact(api, Artifact(artifact_key("queue", name), "table", table, text), flow_run.get_id())
