"""Accounting of jobs that have ended, from `sacct`: their end and their use, where a site keeps accounts."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from slurm_ray_flow.core.scheduler import Job
from slurm_ray_flow.core.slurm.queue import SlurmJob, cause_of, count, duration, full_state, memory, moment, text_of

SEPARATOR = "\x1f"
# All of these are in every version from 20.11 to 25.x; a field that is not known would be an error.
_FIELDS = (
    *("JobID", "JobName", "State", "ExitCode", "Submit", "Start", "End", "ElapsedRaw", "Timelimit", "TotalCPU"),
    *("AllocCPUS", "NNodes", "ReqMem", "MaxRSS", "NodeList", "Partition", "Priority"),
)


@dataclasses.dataclass(frozen=True)
class AccountingRecord(SlurmJob):
    """One job in the accounts, its steps summed up; None where the accounts have no value.

    A job may be RUNNING in the accounts although the queue has forgotten it: they lag behind.

    Attributes:
        exit_code: "code:signal".
        cpus: the number of its CPUs, over all nodes.
        cpu_seconds: the processor time of all its processes; None where the site does not measure it.
        memory: the requested bytes on each node.
        max_memory: the bytes that its largest task used.
    """

    exit_code: str = ""
    cpus: int | None = None
    cpu_seconds: float | None = None
    memory: int | None = None
    max_memory: int | None = None

    @property
    def cause(self) -> str | None:
        return cause_of(self.state, self.reason, self.exit_code)


def accounting_command(user: str, names: Sequence[str] = (), days: int = 7) -> list[str]:
    """The command for jobs of the last days: the jobs of these names with their steps, or all jobs without steps.

    The use of resources stands at the steps; all jobs may have many thousands of them, so they are left out there.
    """
    return [
        *("env", "-u", "SLURM_CLUSTERS", "-u", "SACCT_FEDERATION", "-u", "SACCT_LOCAL", "SLURM_TIME_FORMAT=%s"),
        *("sacct", "--noheader", "--parsable2", f"--delimiter={SEPARATOR}", f"--user={user}"),
        f"--starttime=now-{days}days",
        *([f"--name={','.join(names)}"] if names else ["--allocations"]),
        f"--format={','.join(_FIELDS)}",
    ]


def parse_accounting(text: str) -> dict[str, AccountingRecord]:
    """The jobs by their ids, each with the sums over its steps; other lines are ignored."""
    rows = [line.split(SEPARATOR) for line in text.splitlines() if line[:1].isdecimal()]
    jobs: dict[str, list[dict[str, str]]] = {}
    for cells in rows:
        if len(cells) >= len(_FIELDS):
            fields = {name: text_of(cell) for name, cell in zip(_FIELDS, cells, strict=False)}
            jobs.setdefault(fields["JobID"].partition(".")[0], []).append(fields)
    return {job_id: _record(job_id, rows) for job_id, rows in jobs.items()}


def _record(job_id: str, rows: list[dict[str, str]]) -> AccountingRecord:
    """One job from its own row (the last one if it was started again), and the rows of its steps."""
    job_rows = [row for row in rows if row["JobID"] == job_id]
    steps = [row for row in rows if row["JobID"] != job_id]
    fields = job_rows[-1] if job_rows else rows[0]
    nodes, cpus = count(fields["NNodes"]), count(fields["AllocCPUS"])
    return AccountingRecord(
        job_id=job_id,
        name=fields["JobName"] if job_rows else "",
        state=_state(fields, steps),
        exit_code=fields["ExitCode"],
        submitted=moment(fields["Submit"]),
        start=moment(fields["Start"]),
        end=moment(fields["End"]),
        used=None if (used := count(fields["ElapsedRaw"])) is None else float(used),
        limit=duration(fields["Timelimit"]),
        priority=count(fields["Priority"]),
        cpu_seconds=duration(fields["TotalCPU"]) or sum(duration(step["TotalCPU"]) or 0 for step in steps) or None,
        cpus=cpus,
        nodes=nodes,
        memory=_asked_memory(fields["ReqMem"], nodes or 1, cpus or 1),
        max_memory=max((memory(row["MaxRSS"]) or 0 for row in rows), default=0) or None,
        nodelist="" if fields["NodeList"] == "None assigned" else fields["NodeList"],
        partition=fields["Partition"],
    )


def _state(fields: dict[str, str], steps: list[dict[str, str]]) -> str:
    """The state of a job; one whose step ran out of memory is FAILED, unless the step was the job's script."""
    state = full_state(fields["State"])
    out_of_memory = state == "FAILED" and any(full_state(step["State"]) == "OUT_OF_MEMORY" for step in steps)
    return "OUT_OF_MEMORY" if out_of_memory else state


def _asked_memory(text: str, nodes: int, cpus: int) -> int | None:
    """Bytes on each node: "4Gn" is per node, "2Gc" per CPU (until 20.11), "8G" of the whole job (since 21.08)."""
    amount = memory(text)
    if amount is None or text.endswith("n"):
        return amount
    return amount * cpus // nodes if text.endswith("c") else amount // nodes


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


def cause_of_end(job: Job | None, words: str, *, began: bool) -> tuple[str, str]:
    """The cause and the message of a job's end.

    Args:
        job: the job in the queue or in accounting; None where Slurm has forgotten it.
        words: the last lines of the job's log.
        began: whether the head had started.
    """
    cause = (job.cause if job else None) or "lost"
    if began and cause == "environment":  # Slurm calls it a failed launch when the script was killed, too
        cause = "lost"
    if cause == "lost":
        cause = next((cause for pattern, cause in _IN_THE_LOG if pattern.search(words)), cause)
    if cause == "lost" and job is not None and not began:
        cause = "environment"
    return cause, _message(cause, job, words)


def _message(cause: str, job: Job | None, words: str) -> str:
    text = _TEXTS.get(cause, cause)
    if job is not None:
        nodes = f" on {job.nodelist}" if job.nodelist else ""
        reason = f", {job.reason}" if job.reason not in ("", "None") else ""
        text += f" (job {job.job_id}{nodes}: {job.state}{reason})"
    log_end = words.strip()[-1500:] if cause in ("lost", "environment", "node_failed") else ""
    return f"{text}\n{log_end}".strip()
