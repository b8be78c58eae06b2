"""Why a job ended whose program has said nothing: from what Slurm says of it, and from what it left in the log."""

from __future__ import annotations

import re

from slurm_ray_flow.core.slurm.accounting import Record
from slurm_ray_flow.core.slurm.queue import Job

_IN_THE_LOG = (
    (re.compile(r"oom[-_ ]?kill", re.IGNORECASE), "out_of_memory"),
    (re.compile(r"DUE TO TIME LIMIT"), "time_limit"),
    (re.compile(r"DUE TO (?:PREEMPTION|JOB REQUEUE)"), "preempted"),
    (re.compile(r"DUE TO NODE FAILURE"), "node_failed"),
    (re.compile(r"(?:JOB|STEP) \S+ ON \S+ CANCELLED AT"), "cancelled"),
)
_TEXTS = {
    "out_of_memory": "Slurm ended the job: it used more memory than it asked for",
    "time_limit": "Slurm ended the job: its time limit passed",
    "preempted": "Slurm took the nodes back before the job had ended",
    "node_failed": "a node of the job failed",
    "cancelled": "the job was cancelled in Slurm",
    "environment": "the job ended before our program had started",
    "lost": "the job is gone and left no word",
}


def verdict(job: Job | Record | None, words: str, *, began: bool) -> tuple[str, str]:
    """Cause and message.

    Args:
        job: as the queue or accounting has it; None where Slurm has forgotten it.
        words: the last lines of the job's log.
        began: whether our program had started.
    """
    cause = (job.cause if job else None) or "lost"
    if began and cause == "environment":  # Slurm calls it a failed launch when the script was killed, too
        cause = "lost"
    if cause == "lost":
        cause = next((cause for pattern, cause in _IN_THE_LOG if pattern.search(words)), cause)
    if cause == "lost" and job is not None and not began:
        cause = "environment"
    return cause, _message(cause, job, words)


def _message(cause: str, job: Job | Record | None, words: str) -> str:
    text = _TEXTS.get(cause, cause)
    if job is not None:
        place = f" on {job.nodelist}" if job.nodelist else ""
        reason = job.reason if isinstance(job, Job) else ""
        why = f", {reason}" if reason not in ("", "None") else ""
        text += f" (job {job.job_id}{place}: {job.state}{why})"
    shown = words.strip()[-1500:] if cause in ("lost", "environment", "node_failed") else ""
    return f"{text}\n{shown}".strip()
