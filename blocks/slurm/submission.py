"""A job gets into the queue once, whatever becomes of its answer on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.blocks.machine import Machine
from slurm_ray_flow.blocks.slurm.queue import SCANCEL_SECONDS, JobQueue, scancel_command
from slurm_ray_flow.blocks.waits import told_if_slow
from slurm_ray_flow.core.errors import ConnectionFailed, Rejected
from slurm_ray_flow.core.interruption import pause
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.core.slurm.queue import job_name
from slurm_ray_flow.core.slurm.request import Request, answer_unknown, is_transient, rejected, submitted_nothing, words
from slurm_ray_flow.remote.shared.protocol import TRY

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster


CHOICES = ("partition", "account", "qos", "constraint")
"""What a run may choose for itself."""


def wanted(cluster: SlurmCluster, options: Options) -> Request:
    """What runs with these options ask for."""
    return Request(
        name="check",
        nodes=options.nodes,
        cpus_per_node=options.cpus_per_node,
        gpus_per_node=options.gpus_per_node,
        memory=options.memory,
        time_limit=_lasting(options.time_limit, options.keep_warm),
        **{name: getattr(options, name) or getattr(cluster, name) for name in CHOICES},
        reservation=cluster.reservation,
        exclude=cluster.exclude,
        extra=tuple(cluster.sbatch_options),
    )


def request_of(cluster: SlurmCluster, paths: RunPaths, spec: Mapping[str, Any]) -> Request:
    """The request of one run.

    Args:
        cluster: its block, with what holds for all its runs.
        paths: the run.
        spec: the run's spec.json.
    """
    chosen = spec.get("scheduler") or {}
    return Request(
        name=job_name(str(chosen.get("name", "")), paths.run_id),
        nodes=int(spec["nodes"]),
        cpus_per_node=spec["cpus"],
        gpus_per_node=int(spec["gpus"] or 0),
        memory=spec["memory"],
        time_limit=_lasting(spec["time_limit"], spec.get("keep_warm")),
        **{name: chosen.get(name) or getattr(cluster, name) for name in CHOICES},
        reservation=cluster.reservation,
        exclude=cluster.exclude,
        extra=tuple(cluster.sbatch_options),
        output=str(paths.head_log),
        chdir=str(paths.root),
        warn_seconds=int(spec.get("warn_seconds") or 0),
    )


def _lasting(time_limit: float | None, keep_warm: float | None) -> float | None:
    """How long the job may last: its call, and then the wait for the next one."""
    return None if time_limit is None else time_limit + (keep_warm or 0.0)


SETTLE_SECONDS = 12.0
"""A controller under load takes a job that long after its client has given up (its MessageTimeout is 10 s)."""
GIVE_UP_SECONDS = 900.0
"""So long a controller that is away, or that takes no jobs for now, is asked again."""
LONGEST_PAUSE = 30.0
MOST_WITHOUT_JOB = 3
"""So often sbatch may succeed and leave no job: a controller that is killed forgets what it took a moment before."""


def submit(machine: Machine, queue: JobQueue, paths: RunPaths, name: str, command: Sequence[str]) -> str:
    """Submit a run's script, and again only where it is certain that no job of it is in the queue.

    Args:
        machine: where `sbatch` runs.
        queue: what is in the queue.
        paths: the run.
        name: the job's.
        command: `sbatch` with its arguments.

    Returns:
        The job's id.

    Raises:
        Rejected: Slurm does not take it; its own words say why.
        ConnectionFailed: Slurm did not answer for too long.
    """
    again, seconds, without_job, deadline = "", 1.0, 0, time.monotonic() + GIVE_UP_SECONDS
    while True:
        known = {"root": str(paths.root), "run_id": paths.run_id}
        with told_if_slow("Slurm has not taken the job yet; waits for its answer"):
            answer = machine.ask("slurm.submit", **known, command=list(command), again=again)
        counts = ", ".join(f"{variable}={value}" for variable, value in answer.get("defaults", {}).items())
        if counts:
            reporter().say(f"asks for what variables there say: {counts}")
        if answer["job"]:
            return str(answer["job"])
        said = answer["err"]
        # A site's own sbatch may end with 0 and words of its own, or with an id and the error of what comes after it.
        refused = answer["code"] not in (0, None) and not answer["told"] and not answer_unknown(said)
        for_good = refused and not is_transient(said)
        with told_if_slow("Slurm did not say what became of the job; looks whether it has it"):
            job = _named(queue, paths.run_id) if for_good else None
            job = job if refused else _found(queue, paths.run_id, name, deadline)
        if job:
            machine.ask("slurm.note", **known, job=job)
            return job
        without_job += answer["code"] == 0 and queue.answers
        where = f"{machine.label}, with {counts}" if counts else machine.label
        if for_good:
            raise _closed(machine, queue, paths, rejected(said, where))
        if without_job >= MOST_WITHOUT_JOB:
            raise _closed(machine, queue, paths, submitted_nothing(answer["out"], said, where))
        said = words(said) or words(answer["out"]) or "no answer"
        if time.monotonic() > deadline:
            raise _silent(machine.label, said)
        reporter().say(f"Slurm did not take the job yet ({said}); tries again in {seconds:.0f} s")
        pause(seconds)
        again, seconds = answer["mark"], min(2 * seconds, LONGEST_PAUSE)


def _found(queue: JobQueue, run_id: str, name: str, deadline: float) -> str | None:
    """The job of a submission whose answer was lost, looked for until it would have come."""
    settled = time.monotonic() + SETTLE_SECONDS
    while True:
        if job := _named(queue, run_id):
            return job
        if queue.answers and time.monotonic() > settled:
            return queue.accounted(name)
        if time.monotonic() > deadline:
            return None
        pause(1.0)


def _named(queue: JobQueue, run_id: str) -> str | None:
    job = queue.fresh(run_id)
    return job.job_id if job is not None else None


def _closed(machine: Machine, queue: JobQueue, paths: RunPaths, error: Rejected) -> Rejected:
    """The error; where Slurm names no job of the run either, the run's events say it, and nobody need look again."""
    if queue.answers:
        told = {"cause": error.cause, "message": f"{error.what}{TRY}{error.advice}"}
        machine.ask("slurm.close", root=str(paths.root), run_id=paths.run_id, **told)
    return error


def _silent(label: str, said: str) -> ConnectionFailed:
    what = f"Slurm took no jobs for {GIVE_UP_SECONDS / 60:.0f} minutes: {said}"
    return ConnectionFailed(
        what, where=label, advice="ask the site's support whether Slurm is down, and start it again"
    )


def cancel(machine: Machine, queue: JobQueue, paths: RunPaths, hard: bool) -> None:
    """End exactly this run's job: through its head, which ends the function in order, or by Slurm where that fails.

    A job that waits goes at once.
    """
    noted = machine.ask("slurm.cancel", root=str(paths.root), run_id=paths.run_id)
    job = queue.fresh(paths.run_id)
    if job is None and noted is None:
        return
    number, name = (job.job_id, job.name) if job is not None else (str(noted), "")
    gently = not hard and job is not None and job.group != "waiting"
    machine.ask("commands.run", argv=scancel_command(number, name, gently), timeout=SCANCEL_SECONDS)
    queue.submitted()
