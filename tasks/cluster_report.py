"""Can a cluster be used, who has it, what idles there: looked at on a schedule; what changes is told to Prefect."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import task
from prefect.runtime import flow_run

from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.artifacts import Artifact, update_artifact
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.blocks.lock_mirror import ask_for_queue, show_queue
from slurm_ray_flow.blocks.processes import run
from slurm_ray_flow.blocks.scheduler import Scheduler
from slurm_ray_flow.blocks.server import variables
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.client import api_in_use
from slurm_ray_flow.core.artifacts import artifact_key, short_name
from slurm_ray_flow.core.cluster_report import CheckResult, Health, HomeFacts, judged, logged_in, looked, not_logged_in
from slurm_ray_flow.core.config import configured, settings_of, with_block_fields
from slurm_ray_flow.core.errors import ConnectionFailed, LogInFailed, ServerError, SlurmRayFlowError
from slurm_ray_flow.core.lock import LockQueue, limit_name, queue_rows
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.warm import Warm
from slurm_ray_flow.tasks.asked import Asked
from slurm_ray_flow.tasks.end_report import emit
from slurm_ray_flow.tasks.retry import ONCE
from slurm_ray_flow.tasks.warm import warm_on

SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class ClusterLoad:
    """What a cluster says of itself.

    Attributes:
        state: "up", "away" (it can't be reached) or "locked" (it wants to know something that a user would type).
        why: why it is not up; "" where it is.
        cpus: how many there are, of a scheduler's in the partition that jobs go to; None where that is not known.
        busy: how many of them are in use.
        partition: that partition; "" elsewhere.
        gpus, gpus_taken: of that partition.
        slots, slots_free: of a server that is shared under a lock; None without one.
        holders: who holds it: user, since when, run.
        running, waiting: runs, or one's own jobs, that are at work and that wait.
    """

    state: str = "up"
    why: str = ""
    cpus: int | None = None
    busy: float | None = None
    partition: str = ""
    gpus: int | None = None
    gpus_taken: int | None = None
    slots: int | None = None
    slots_free: int | None = None
    holders: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    running: int | None = None
    waiting: int | None = None


def loads(clusters: Sequence[Cluster], seconds: float = SECONDS) -> list[ClusterLoad]:
    """Ask all of them at once; one that does not answer in time is away, and nobody is asked for a password."""
    asked = [Asked(functools.partial(load, cluster)) for cluster in clusters]
    deadline = time.monotonic() + seconds
    for one in asked:
        one.wait(deadline)
    return [one.answer or ClusterLoad(_state(one.error), one.why) for one in asked]


def _state(error: Exception | None) -> str:
    return "locked" if isinstance(error, LogInFailed) else "away"


def load(cluster: Cluster) -> ClusterLoad:
    """How busy it is.

    Raises:
        SlurmRayFlowError: it can't be asked.
    """
    if cluster.scheduler is not None:
        return _of_scheduler(cluster.scheduler)
    machine = cluster.ask("machines.load")
    known = ClusterLoad(cpus=machine["cpus"], busy=machine["busy"])
    if cluster.lock is None:
        return known
    queue = cluster.ask("queue.state", path=cluster.lock.path, slots=cluster.lock.slots)
    return dataclasses.replace(
        known,
        slots=queue["slots"],
        slots_free=queue["free"],
        holders=list(queue["holders"]),
        running=len(queue["holders"]),
        waiting=len(queue["waiting"]),
    )


def _of_scheduler(scheduler: Scheduler) -> ClusterLoad:
    """The load of the partition that jobs go to, and one's own jobs; both as somebody asked a moment ago."""
    taken, groups = scheduler.load(), scheduler.groups()
    known = ClusterLoad(running=groups.count("running"), waiting=groups.count("waiting"))
    return dataclasses.replace(known, **taken._asdict()) if taken else known


LOCAL = "local-machine"


def check(cluster: Cluster) -> list[CheckResult]:
    """All findings about a cluster; one that can't be reached is a finding, not an error."""
    try:
        root = str(cluster.root_folder)
        cluster.ask("runs.clock")  # logs in, so that the clocks are not compared over the time that takes
    except SlurmRayFlowError as error:
        return not_logged_in(error)
    began = time.time()
    try:
        answers = cluster.ask("probe.all", root=root, **_wanted(cluster))
    except SlurmRayFlowError as error:
        return [*logged_in(cluster.label), CheckResult("programs", "failed", error.what, error.advice)]
    home = _home(cluster, (began + time.time()) / 2)
    remote = logged_in(cluster.label) if home.remote else []
    return [*remote, *_scheduler(cluster), *_with_container(cluster, judged(answers, home))]


def _with_container(cluster: Cluster, findings: list[CheckResult]) -> list[CheckResult]:
    """A cluster whose functions run in a container needs neither a Python for them nor packages."""
    container = cluster.container_for(Options())
    if container is None:
        return findings
    try:
        found = container.found(cluster.ask("container.look", image=container.image))
        finding = CheckResult("container", "ok", found.image)
    except SlurmRayFlowError as error:
        finding = CheckResult("container", "failed", f"{error.what} ({error.where})", error.advice)
    return [finding, *(one for one in findings if one.name not in {"python", "registry"})]


def _scheduler(cluster: Cluster) -> list[CheckResult]:
    """What is to be said of the scheduler, where there is one."""
    if cluster.scheduler is None:
        return []
    try:
        return [cluster.scheduler.finding(_configured(cluster))]
    except SlurmRayFlowError as error:
        return [CheckResult(cluster.scheduler.check_name, "failed", error.what, error.advice)]


def _configured(cluster: Cluster) -> Options:
    """What a function of the working directory's project asks for that says nothing itself."""
    settings = settings_of(None, Path.cwd(), os.environ)
    fields = {name: getattr(cluster, name) for name in getattr(type(cluster), "model_fields", ())}
    return with_block_fields(configured(Options().stating(cluster=cluster), settings), fields)


def _wanted(cluster: Cluster) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "python": getattr(cluster, "python", "") or ("" if cluster.kind != LOCAL else sys.executable),
        "version": _version(),
    }
    return {**asked, "lock": cluster.lock.path, "slots": cluster.lock.slots} if cluster.lock else asked


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _home(cluster: Cluster, now: float) -> HomeFacts:
    gpus, wheels = getattr(cluster, "gpus", None), getattr(cluster, "wheels", "index")
    return HomeFacts(now, _rsync_here(), _version(), gpus, wheels, remote=cluster.kind != LOCAL)


def _rsync_here() -> str:
    with contextlib.suppress(SlurmRayFlowError):
        if found := re.search(r"version v?(\d+(?:\.\d+)*)", run(["rsync", "--version"], timeout=10).stdout):
            return found[1]
    return ""


@dataclasses.dataclass(frozen=True)
class CheckUp:
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
    queue: LockQueue | None = None
    why: str = ""
    advice: str = ""
    since: float = 0.0
    idle: tuple[Warm, ...] = ()
    again: float = 0.0

    @property
    def down(self) -> bool:
        return bool(self.why)


@task(name="check_up", task_run_name="check_up {name}", **ONCE)
def check_up(name: str, idle_minutes: float) -> CheckUp:
    """Look at one cluster. Prefect gets an event where it goes down or comes up, or a Ray cluster idles for so long.

    Raises:
        ServerError: Prefect has no API that others can reach.
    """
    api, short = _api(), short_name(name)
    before = Health.from_json(variables.recall(api, "health", short))
    if time.time() < before.again:
        return CheckUp(short, why=before.why, since=before.since, again=before.again)
    seen, refused = _looked(name, short, api)
    after, news = looked(before, seen.why, seen.advice, refused, seen.idle, idle_minutes * 60, short, time.time())
    for notice in news:
        emit(notice)
    if after != before:
        variables.remember(api, "health", short, after.to_json())
    return dataclasses.replace(seen, since=after.since)


def _looked(name: str, short: str, api: Api) -> tuple[CheckUp, bool]:
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
        return CheckUp(short, why=error.what, advice=error.advice), refused
    return CheckUp(short, queue, idle=idle), False


def _see_scheduler(cluster: Cluster) -> None:
    if cluster.scheduler is None:
        return
    finding = cluster.scheduler.finding(Options())
    if finding.state == "failed":
        raise SlurmRayFlowError(finding.found, where=cluster.label, advice=finding.advice)


@task(name="mirror_lock", task_run_name="mirror_lock {name}", **ONCE)
def mirror_lock(name: str) -> CheckUp | None:
    """Make Prefect's limit show who has the server, and write it down as an artifact.

    Returns:
        What it found; None for a cluster without a lock.

    Raises:
        ServerError: Prefect has no API that others can reach.
    """
    api = _api()
    try:
        cluster = find_cluster(name)
        return None if cluster.lock is None else CheckUp(short_name(name), _queue(cluster, api))
    except ServerError:
        raise
    except SlurmRayFlowError as error:
        return CheckUp(short_name(name), why=error.what, advice=error.advice)


def _queue(cluster: Cluster, api: Api) -> LockQueue | None:
    """Who has a server that has a lock; one that has none is asked for the time, to see that it answers."""
    if cluster.lock is None:
        cluster.ask("runs.clock")
        return None
    limit = concurrency_limit.ensure(api, limit_name(cluster.label), cluster.lock.slots)
    queue = ask_for_queue(cluster, cluster.lock)
    show_queue(api, limit, queue)
    _write_down(api, short_name(cluster.label), queue)
    return queue


def _write_down(api: Api, name: str, queue: LockQueue) -> None:
    who = ", ".join(holder.user for holder in queue.holders)
    text = f"{name}: " + (f"held by {who}, {len(queue.waiting)} wait" if who else "free")
    table: list[dict[str, Any]] = queue_rows(queue, time.time())
    update_artifact(api, Artifact(artifact_key("queue", name), "table", table, text), flow_run.get_id())


def _api() -> Api:
    api = api_in_use()
    if api is None:
        what = "No Prefect API is configured for the check-up."
        raise ServerError(what, advice="Set PREFECT_API_URL, or use srf up.")
    return api
