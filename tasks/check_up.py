"""The check-up of a saved cluster on a schedule: its lock's holders, its health and its idle allocations in Prefect."""

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
    """Check up one cluster; send Prefect an event when it goes down or comes up, or when a Ray cluster idles too long.

    Raises:
        ServerError: Prefect's API can't be reached.
    """
    api, short = needed_api(), short_name(name)
    old_health = Health.from_json(variables.recall(api, "health", short))
    if time.time() < old_health.again:
        return ClusterReport(short, ConnectionFailed(old_health.why), health=old_health)
    cluster_report = _mirrored_report(api, name, "lock", "scheduler", "idle")
    new_health, events = looked(old_health, cluster_report, idle_minutes * 60, time.time())
    for event in events:
        emit(event)
    if new_health != old_health:
        variables.remember(api, "health", short, new_health.to_json())
    return dataclasses.replace(cluster_report, health=new_health)


@task(name="mirror_lock", task_run_name="mirror_lock {name}", **ONCE)
def mirror_lock(name: str) -> ClusterReport | None:
    """Show the holders of a server's lock in Prefect's limit for it and in an artifact.

    Returns:
        The report of the lock; None for a cluster without a lock.

    Raises:
        ServerError: Prefect's API can't be reached.
    """
    cluster_report = _mirrored_report(needed_api(), name, "lock")
    return cluster_report if cluster_report.down or cluster_report.lock else None


def _mirrored_report(api: Api, name: str, *parts: Part) -> ClusterReport:
    """Report on a saved cluster, and show its lock in Prefect."""
    try:
        cluster = find_cluster(name)
    except ServerError:
        raise
    except SlurmRayFlowError as error:
        return ClusterReport(short_name(name), error)
    cluster_report = report(cluster, *parts)
    if cluster.lock and cluster_report.lock:
        mirror(api, cluster_report.cluster, cluster.lock.slots, cluster_report.lock)
        _show_queue(api, short_name(cluster_report.cluster), cluster_report.lock)
    return cluster_report


def _show_queue(api: Api, name: str, queue: LockQueue) -> None:
    who = ", ".join(holder.user for holder in queue.holders)
    text = f"{name}: " + (f"held by {who}, {len(queue.waiting)} wait" if who else "free")
    table = queue_rows(queue, time.time())
    update_artifact(api, Artifact(artifact_key("queue", name), "table", table, text), flow_run.get_id())
