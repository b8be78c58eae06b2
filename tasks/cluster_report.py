"""The report of a cluster, as `srf check`, `srf clusters`, `srf queue`, the check-ups and the mirror read it."""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.machine import Request
from slurm_ray_flow.blocks.scheduler import Scheduler
from slurm_ray_flow.core.cluster_report import (
    CheckResult,
    ClusterReport,
    HomeFacts,
    JobCounts,
    Load,
    judged,
    logged_in,
    not_logged_in,
)
from slurm_ray_flow.core.config import configured, settings_of, with_block_fields
from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError
from slurm_ray_flow.core.lock import LockQueue
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.remote.agent import probe
from slurm_ray_flow.tasks.question import Question
from slurm_ray_flow.tasks.warm import living_allocations

SECONDS, MORE_SECONDS = 10.0, 40.0
"""How long clusters are waited for; the second one where each is asked for all that it has."""
LOCAL = "local-machine"
Part = Literal["load", "lock", "jobs", "partitions", "findings", "scheduler", "idle"]


def reports(clusters: Sequence[Cluster], seconds: float = SECONDS, more: Sequence[Part] = ()) -> list[ClusterReport]:
    """Ask all clusters at once for load, lock and jobs, and more; one that does not answer in time is away.

    The user is asked for no password.
    """
    parts: tuple[Part, ...] = ("load", "lock", "jobs", *more)
    questions = [Question(functools.partial(report, cluster, *parts)) for cluster in clusters]
    deadline = time.monotonic() + seconds
    for question in questions:
        question.wait(deadline)
    return [
        question.answer or ClusterReport(cluster.label, ConnectionFailed(question.why))
        for question, cluster in zip(questions, clusters, strict=True)
    ]


def report(cluster: Cluster, *parts: Part) -> ClusterReport:
    """Ask a cluster; where that fails, the report has the error.

    Args:
        cluster: the cluster.
        parts: the fields of the report that are wanted; "scheduler" is the one finding that a scheduler answers.
    """
    scheduler = cluster.scheduler
    sources: dict[str, Callable[[], Any]] = {"findings": lambda: _findings(cluster)}
    if scheduler is not None:
        sources |= {"load": scheduler.load, "jobs": scheduler.jobs, "partitions": scheduler.partitions}
    try:
        fields = _machine_fields(cluster, parts) | {part: source() for part, source in sources.items() if part in parts}
        if scheduler is not None and "scheduler" in parts:
            fields["findings"] = [_scheduler_finding(scheduler, Options)]
    except SlurmRayFlowError as error:
        return ClusterReport(cluster.label, error, findings=not_logged_in(error) if "findings" in parts else None)
    return ClusterReport(cluster.label, **fields)


def _machine_fields(cluster: Cluster, parts: Sequence[Part]) -> dict[str, Any]:
    """The fields of a report that the cluster's operations answer, in one round trip."""
    lock = cluster.lock
    requests: dict[str, Request] = {}
    if "load" in parts and cluster.scheduler is None:
        requests["load"] = "machines.load", {}
    if "lock" in parts and lock is not None:
        requests["lock"] = "queue.state", {"path": lock.path, "slots": lock.slots}
    if "idle" in parts:
        requests["idle"] = "warm.listed", {"root": str(cluster.root_folder)}
    answers = dict(zip(requests, cluster.ask_all([*requests.values()]) if requests else (), strict=True))
    fields: dict[str, Any] = {}
    if load := answers.get("load"):
        fields["load"] = Load(load["cpus"], load["busy"])
    if state := answers.get("lock"):
        fields["lock"] = queue = LockQueue.from_json(state)
        fields["jobs"] = JobCounts(len(queue.holders), len(queue.waiting))
    if "idle" in answers:
        fields["idle"] = [allocation for allocation in living_allocations(cluster, answers["idle"]) if allocation.idles]
    return fields


def _findings(cluster: Cluster) -> list[CheckResult]:
    remote, lock, scheduler = cluster.kind != LOCAL, cluster.lock, cluster.scheduler
    python, version = getattr(cluster, "python", ""), "{}.{}".format(*sys.version_info[:2])
    arguments: dict[str, Any] = {"python": python or ("" if remote else sys.executable), "version": version}
    arguments |= {"root": str(cluster.root_folder), **({"lock": lock.path, "slots": lock.slots} if lock else {})}
    began = time.time()  # after the log-in, which `root_folder` needs: the clocks are compared without it
    answers = cluster.ask("probe.all", **arguments)
    gpus, wheels = getattr(cluster, "gpus", None), getattr(cluster, "wheels", "index")
    home = HomeFacts((began + time.time()) / 2, probe.rsync()["version"], version, gpus, wheels)
    finding = [_scheduler_finding(scheduler, lambda: _configured(cluster))] if scheduler else []
    return [*(logged_in(cluster.label) if remote else ()), *finding, *_with_container(cluster, judged(answers, home))]


def _scheduler_finding(scheduler: Scheduler, options: Callable[[], Options]) -> CheckResult:
    """Whether a scheduler would take a job."""
    try:
        return scheduler.finding(options())
    except SlurmRayFlowError as error:
        return CheckResult(scheduler.check_name, "failed", error.what, error.advice)


def _with_container(cluster: Cluster, findings: list[CheckResult]) -> list[CheckResult]:
    """The findings for functions in a container, which need neither a Python nor packages of the cluster."""
    container = cluster.container_for(Options())
    if container is None:
        return findings
    try:
        found = container.found(cluster.ask("container.look", image=container.image))
        finding = CheckResult("container", "ok", found.image)
    except SlurmRayFlowError as error:
        finding = CheckResult("container", "failed", f"{error.what} ({error.where})", error.advice)
    return [finding, *(other for other in findings if other.name not in {"python", "registry"})]


def _configured(cluster: Cluster) -> Options:
    """The options of a function without options of its own in the working directory's project."""
    settings = settings_of(None, Path.cwd(), os.environ)
    fields = {name: getattr(cluster, name) for name in getattr(type(cluster), "model_fields", ())}
    return with_block_fields(configured(Options().stating(cluster=cluster), settings), fields)
