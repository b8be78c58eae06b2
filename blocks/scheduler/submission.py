"""The submission of a job exactly once, even if the answer is lost; and its cancellation."""

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
"""Seconds after a client's failure in which a loaded controller may still accept the job (MessageTimeout is 10 s)."""
GIVE_UP_SECONDS = 900.0
"""Seconds for which a controller that does not answer, or accepts no jobs for now, is asked again."""
LONGEST_PAUSE = 30.0
MOST_WITHOUT_JOB = 3
"""The most successes that leave no job: a killed controller forgets jobs that it accepted a moment before."""


def submit(machine: Machine, queue: JobQueue, paths: RunPaths, request: JobRequest) -> str:
    """Submit a run's script, and again only if it is certain that the queue has no job of the run.

    Args:
        machine: the login node.
        queue: the job queue.
        paths: the run's paths.
        request: the job's request.

    Returns:
        The job's id.

    Raises:
        Rejected: the scheduler refuses the job; with its messages.
        ConnectionFailed: the scheduler did not answer for too long.
    """
    earlier_mark, seconds, successes_without_job, deadline = "", 1.0, 0, time.monotonic() + GIVE_UP_SECONDS
    dialect = queue.dialect
    run_id_fields = {"root": str(paths.root), "run_id": paths.run_id}
    submission = {"command": dialect.submit_command(request), "name": request.name, "rules": dialect.rules.of(request)}
    while True:
        with message_if_slow(f"{dialect.name} has not taken the job yet; waits for its answer"):
            answer = machine.ask("scheduler.submit", **run_id_fields, **submission, again=earlier_mark)
        variables = ", ".join(f"{variable}={value}" for variable, value in answer.get("defaults", {}).items())
        if variables:
            publish(Note(f"asks for what variables there say: {variables}"))
        if answer["job"]:
            return str(answer["job"])
        stderr = answer["err"]
        # A site's wrapper may end with 0 and a message, or with an id and the error of a later command.
        refused = answer["code"] not in (0, None) and not answer["told"] and not dialect.answer_unknown(stderr)
        for_good = refused and not dialect.is_transient(stderr)
        with message_if_slow(f"{dialect.name} did not say what became of the job; looks whether it has it"):
            job = _job_of_run(queue, paths.run_id) if for_good else None
            job = job if refused else _find_lost_job(queue, paths.run_id, request.name, deadline)
        if job:
            machine.ask("scheduler.note", **run_id_fields, job=job)
            return job
        successes_without_job += answer["code"] == 0 and queue.answers
        where = f"{machine.label}, with {variables}" if variables else machine.label
        if for_good:
            raise _close_if_no_job(machine, queue, paths, dialect.rejected(stderr, where))
        if successes_without_job >= MOST_WITHOUT_JOB:
            raise _close_if_no_job(machine, queue, paths, dialect.submitted_nothing(answer["out"], stderr, where))
        stderr = dialect.words(stderr) or dialect.words(answer["out"]) or "no answer"
        if time.monotonic() > deadline:
            raise _no_answer(dialect.name, machine.label, stderr)
        publish(Note(f"{dialect.name} did not take the job yet ({stderr}); tries again in {seconds:.0f} s"))
        pause(seconds)
        earlier_mark, seconds = answer["mark"], min(2 * seconds, LONGEST_PAUSE)


def _find_lost_job(queue: JobQueue, run_id: str, name: str, deadline: float) -> str | None:
    """The job of a submission whose answer was lost; waits as long as the job may still appear."""
    settled = time.monotonic() + SETTLE_SECONDS
    while True:
        if job := _job_of_run(queue, run_id):
            return job
        if queue.answers and time.monotonic() > settled:
            return queue.accounted(name)
        if time.monotonic() > deadline:
            return None
        pause(1.0)


def _job_of_run(queue: JobQueue, run_id: str) -> str | None:
    job = queue.fresh(run_id)
    return job.job_id if job is not None else None


def _close_if_no_job(machine: Machine, queue: JobQueue, paths: RunPaths, error: Rejected) -> Rejected:
    """The error, which is also recorded in the run's events if the queue answers that it has no job of the run."""
    if queue.answers:
        end = {"cause": error.cause, "message": f"{error.what}{TRY}{error.advice}"}
        machine.ask("scheduler.close", root=str(paths.root), run_id=paths.run_id, **end)
    return error


def _no_answer(scheduler: str, label: str, message: str) -> ConnectionFailed:
    what = f"{scheduler} took no jobs for {GIVE_UP_SECONDS / 60:.0f} minutes: {message}"
    return ConnectionFailed(
        what, where=label, advice=f"ask the site's support whether {scheduler} is down, and start it again"
    )


def cancel(machine: Machine, queue: JobQueue, paths: RunPaths, hard: bool) -> None:
    """End exactly this run's job: its head ends the function in order; a waiting job is removed at once."""
    noted_id = machine.ask("scheduler.cancel", root=str(paths.root), run_id=paths.run_id)
    job = queue.fresh(paths.run_id)
    if job is None and noted_id is None:
        return
    number, name = (job.job_id, job.name) if job is not None else (str(noted_id), "")
    queue.cancel(number, name, gently=not hard and job is not None and job.group != "waiting")
    queue.submitted()
