"""Can a cluster be used, who has it, what idles there: looked at on a schedule; what changes is told to Prefect."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from prefect import task
from prefect.runtime import flow_run

from slurm_ray_flow.blocks import limits, remembered
from slurm_ray_flow.blocks.artifacts import Artifact, keep
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.blocks.mirror import ask, show_queue
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.slurm.request import wanted
from slurm_ray_flow.blocks.slurm.sites import site
from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster
from slurm_ray_flow.core.artifact import artifact_key, short_name
from slurm_ray_flow.core.errors import ConnectionFailed, ServerError, SlurmRayFlowError
from slurm_ray_flow.core.health import Health, looked
from slurm_ray_flow.core.mirror import Queue, limit_name, rows
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.slurm.findings import slurm_finding
from slurm_ray_flow.core.warm import Warm
from slurm_ray_flow.tasks.policy import ONCE
from slurm_ray_flow.tasks.release import warm_on
from slurm_ray_flow.tasks.tell_end import emit


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a check-up found.

    Attributes:
        cluster: its name.
        queue: who has it and who waits; None where it has no lock, or gave no answer.
        why: it can't be used; "" where it can.
        advice: what to try.
        since: when that began, in seconds since 1970.
        idle: the Ray clusters that wait there for a next call.
        again: when it is looked at again, where that is not done now: it let us not in.
    """

    cluster: str
    queue: Queue | None = None
    why: str = ""
    advice: str = ""
    since: float = 0.0
    idle: tuple[Warm, ...] = ()
    again: float = 0.0

    @property
    def down(self) -> bool:
        return bool(self.why)


@task(name="check_up", task_run_name="check_up {name}", **ONCE)
def check_up(name: str, idle_minutes: float) -> Seen:
    """Look at one cluster. Prefect gets an event where it goes down or comes up, or a Ray cluster idles for so long.

    Raises:
        ServerError: Prefect has no API that others can reach.
    """
    api, short = _api(), short_name(name)
    before = Health.from_json(remembered.recall(api, "health", short))
    if time.time() < before.again:
        return Seen(short, why=before.why, since=before.since, again=before.again)
    seen, refused = _looked(name, short, api)
    after, news = looked(before, seen.why, seen.advice, refused, seen.idle, idle_minutes * 60, short, time.time())
    for notice in news:
        emit(notice)
    if after != before:
        remembered.remember(api, "health", short, after.to_json())
    return dataclasses.replace(seen, since=after.since)


def _looked(name: str, short: str, api: Api) -> tuple[Seen, bool]:
    """What is there now; and whether it let us not in: sites block who tries often."""
    try:
        cluster = find_cluster(name)
        queue = _queue(cluster, api)
        _see_scheduler(cluster)
        idle = tuple(one for one in warm_on(cluster) if one.idles)
    except ServerError:
        raise
    except SlurmRayFlowError as error:
        refused = isinstance(error, ConnectionFailed) and not error.transient
        return Seen(short, why=error.what, advice=error.advice), refused
    return Seen(short, queue, idle=idle), False


def _see_scheduler(cluster: Cluster) -> None:
    if not isinstance(cluster, SlurmCluster):
        return
    finding = slurm_finding(site(cluster.login), wanted(cluster, Options()))
    if finding.state == "failed":
        raise SlurmRayFlowError(finding.found, where=cluster.label, advice=finding.advice)


@task(name="mirror_lock", task_run_name="mirror_lock {name}", **ONCE)
def mirror_lock(name: str) -> Seen | None:
    """Make Prefect's limit show who has the server, and write it down as an artifact.

    Returns:
        What it found; None for a cluster without a lock.

    Raises:
        ServerError: Prefect has no API that others can reach.
    """
    api = _api()
    try:
        cluster = find_cluster(name)
        return None if cluster.lock is None else Seen(short_name(name), _queue(cluster, api))
    except ServerError:
        raise
    except SlurmRayFlowError as error:
        return Seen(short_name(name), why=error.what, advice=error.advice)


def _queue(cluster: Cluster, api: Api) -> Queue | None:
    """Who has a server that has a lock; one that has none is asked for the time, to see that it answers."""
    if cluster.lock is None:
        cluster.ask("runs.clock")
        return None
    limit = limits.ensure(api, limit_name(cluster.label), cluster.lock.slots)
    queue = ask(cluster, cluster.lock)
    show_queue(api, limit, queue)
    _write_down(api, short_name(cluster.label), queue)
    return queue


def _write_down(api: Api, name: str, queue: Queue) -> None:
    who = ", ".join(holder.user for holder in queue.holders)
    text = f"{name}: " + (f"held by {who}, {len(queue.waiting)} wait" if who else "free")
    table: list[dict[str, Any]] = rows(queue, time.time())
    keep(api, Artifact(artifact_key("queue", name), "table", table, text), flow_run.get_id())


def _api() -> Api:
    api = limits.api_here()
    if api is None:
        what = "No Prefect API is configured for the check-up."
        raise ServerError(what, advice="Set PREFECT_API_URL, or use srf up.")
    return api
