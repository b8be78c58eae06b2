"""A job gets into the queue once, whatever becomes of its answer on the way."""

from __future__ import annotations

import time

from slurm_ray_flow.blocks.machine import Machine
from slurm_ray_flow.blocks.scheduler.queue import JobQueue
from slurm_ray_flow.blocks.waits import message_if_slow
from slurm_ray_flow.core.errors import ConnectionFailed, Rejected
from slurm_ray_flow.core.interruption import pause
from slurm_ray_flow.core.launch_events import Note, publish
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.remote.shared.protocol import TRY

SETTLE_SECONDS = 12.0
"""A controller under load takes a job that long after its client has given up (its MessageTimeout is 10 s)."""
GIVE_UP_SECONDS = 900.0
"""So long a controller that is away, or that takes no jobs for now, is asked again."""
LONGEST_PAUSE = 30.0
MOST_WITHOUT_JOB = 3
"""So often it may succeed and leave no job: a controller that is killed forgets what it took a moment before."""


def submit(machine: Machine, queue: JobQueue, paths: RunPaths, request: JobRequest) -> str:
    """Submit a run's script, and again only where it is certain that no job of it is in the queue.

    Args:
        machine: where the command runs.
        queue: what is in the queue.
        paths: the run.
        request: what the job asks for.

    Returns:
        The job's id.

    Raises:
        Rejected: the scheduler does not take it; its own words say why.
        ConnectionFailed: the scheduler did not answer for too long.
    """
    again, seconds, without_job, deadline = "", 1.0, 0, time.monotonic() + GIVE_UP_SECONDS
    dialect = queue.dialect
    known = {"root": str(paths.root), "run_id": paths.run_id}
    asked = {"command": dialect.submit_command(request), "name": request.name, "rules": dialect.rules.of(request)}
    while True:
        with message_if_slow(f"{dialect.name} has not taken the job yet; waits for its answer"):
            answer = machine.ask("scheduler.submit", **known, **asked, again=again)
        counts = ", ".join(f"{variable}={value}" for variable, value in answer.get("defaults", {}).items())
        if counts:
            publish(Note(f"asks for what variables there say: {counts}"))
        if answer["job"]:
            return str(answer["job"])
        said = answer["err"]
        # A site's own command may end with 0 and words of its own, or with an id and the error of what comes after it.
        refused = answer["code"] not in (0, None) and not answer["told"] and not dialect.answer_unknown(said)
        for_good = refused and not dialect.is_transient(said)
        with message_if_slow(f"{dialect.name} did not say what became of the job; looks whether it has it"):
            job = _named(queue, paths.run_id) if for_good else None
            job = job if refused else _found(queue, paths.run_id, request.name, deadline)
        if job:
            machine.ask("scheduler.note", **known, job=job)
            return job
        without_job += answer["code"] == 0 and queue.answers
        where = f"{machine.label}, with {counts}" if counts else machine.label
        if for_good:
            raise _closed(machine, queue, paths, dialect.rejected(said, where))
        if without_job >= MOST_WITHOUT_JOB:
            raise _closed(machine, queue, paths, dialect.submitted_nothing(answer["out"], said, where))
        said = dialect.words(said) or dialect.words(answer["out"]) or "no answer"
        if time.monotonic() > deadline:
            raise _silent(dialect.name, machine.label, said)
        publish(Note(f"{dialect.name} did not take the job yet ({said}); tries again in {seconds:.0f} s"))
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
    """The error; where the queue names no job of the run either, its events say it, and nobody need look again."""
    if queue.answers:
        told = {"cause": error.cause, "message": f"{error.what}{TRY}{error.advice}"}
        machine.ask("scheduler.close", root=str(paths.root), run_id=paths.run_id, **told)
    return error


def _silent(scheduler: str, label: str, said: str) -> ConnectionFailed:
    what = f"{scheduler} took no jobs for {GIVE_UP_SECONDS / 60:.0f} minutes: {said}"
    return ConnectionFailed(
        what, where=label, advice=f"ask the site's support whether {scheduler} is down, and start it again"
    )


def cancel(machine: Machine, queue: JobQueue, paths: RunPaths, hard: bool) -> None:
    """End exactly this run's job: through its head, which ends the function in order, or by a command where that fails.

    A job that waits goes at once.
    """
    noted = machine.ask("scheduler.cancel", root=str(paths.root), run_id=paths.run_id)
    job = queue.fresh(paths.run_id)
    if job is None and noted is None:
        return
    number, name = (job.job_id, job.name) if job is not None else (str(noted), "")
    queue.cancel(number, name, gently=not hard and job is not None and job.group != "waiting")
    queue.submitted()
