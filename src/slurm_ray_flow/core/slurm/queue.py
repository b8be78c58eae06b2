r"""The one question to `squeue` for all our jobs, its answer, and what a job's end means in our words.

The columns are joined by `\x1f`, which squeue passes on as it is and no column holds (22.05); times are seconds since
1970, by SLURM_TIME_FORMAT, which all versions hand to strftime: the zone of a cluster is not ours to guess.
Jobs that have ended stay for a while (MinJobAge, 300 s by default) and are asked for, too. There is no `--jobs`: with
an id that Slurm has forgotten it fails.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from slurm_ray_flow.core.slurm.numbers import count, duration, moment, text_of

SEPARATOR = "\x1f"
_COLUMNS = tuple("iTrPDNQSeMlVj")  # the name comes last: no other column is free text
_FORMAT = SEPARATOR.join(f"%{column}" for column in _COLUMNS)
_FILTERS = (
    *("ACCOUNT", "ARRAY", "FEDERATION", "LICENSES", "LOCAL", "NAMES", "PARTITION", "PRIORITY", "QOS", "SIBLING"),
    *("SORT", "USERS"),
)
_ENVIRONMENT = [
    "env",
    *[part for name in _FILTERS for part in ("-u", f"SQUEUE_{name}")],
    *("-u", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT=%s"),
]

Group = Literal["waiting", "running", "ended", "unknown"]
_WAITING = (
    *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"),
    *("POWER_UP_NODE", "EXPEDITING"),
)
_RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT", "UPDATE_DB")
_CAUSES = {
    "COMPLETED": "lost",
    "FAILED": "lost",
    "LAUNCH_FAILED": "node_failed",
    "RECONFIG_FAIL": "node_failed",
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "PREEMPTED": "preempted",
    "NODE_FAIL": "node_failed",
    "BOOT_FAIL": "node_failed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}
_CAUSES_BY_REASON = {
    "BadConstraints": "rejected",  # sbatch itself said no, and the job is in the queue all the same, as FAILED
    "InvalidAccount": "rejected",
    "InvalidQOS": "rejected",
    "JobLaunchFailure": "environment",
    "RaisedSignal:53": "environment",  # the output file can't be opened, as 24.11 says it
    "NodeDown": "node_failed",
    "OutOfMemory": "out_of_memory",
    "SystemFailure": "node_failed",
    "TimeLimit": "time_limit",
    "DeadLine": "time_limit",
}
_CAUSES_BY_EXIT = {"0:125": "out_of_memory", "0:53": "environment"}  # 53: as above
_SHORT = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "DL": "DEADLINE",
    "F": "FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "R": "RUNNING",
    "RQ": "REQUEUED",
    "S": "SUSPENDED",
    "TO": "TIMEOUT",
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One job as the queue shows it. None and "" are what Slurm does not say.

    Attributes:
        job_id: the number; "7_1" for a task of an array, "7+1" for a part of a heterogeneous job.
        state: Slurm's own word, in full: "PENDING".
        reason: why it waits, or why it failed.
        nodes: how many.
        nodelist: which ones, once it has them.
        priority: a higher one starts earlier.
        start, end: seconds since 1970; of a job that waits, what Slurm expects.
        used, limit: seconds; an infinite limit is none.
        submitted: seconds since 1970.
    """

    job_id: str
    name: str
    state: str
    reason: str = ""
    partition: str = ""
    nodes: int | None = None
    nodelist: str = ""
    priority: int | None = None
    start: float | None = None
    end: float | None = None
    used: float | None = None
    limit: float | None = None
    submitted: float | None = None

    @property
    def group(self) -> Group:
        return group_of(self.state)

    @property
    def cause(self) -> str | None:
        """Why it has no outcome of ours, if it has ended: one of the words of `CAUSES`."""
        return cause_of(self.state, self.reason)


def queue_command(user: str) -> list[str]:
    """The one question for all jobs of this user, those that have just ended among them."""
    return [*_ENVIRONMENT, "squeue", "--noheader", "--states=all", f"--user={user}", f"--format={_FORMAT}"]


def pending_command(partition: str) -> list[str]:
    """Who waits in these partitions ("cpu" or "cpu,gpu"), whoever they are: for how many are ahead."""
    return [
        *_ENVIRONMENT,
        *("squeue", "--noheader", "--states=PENDING", f"--partition={partition}", f"--format={_FORMAT}"),
    ]


def parse_queue(text: str) -> dict[str, Job]:
    """The jobs by their ids, in the order of the answer. Lines that are no job are noise and left out."""
    jobs = [_job(line.split(SEPARATOR)) for line in text.splitlines() if line.count(SEPARATOR) >= len(_COLUMNS) - 1]
    return {job.job_id: job for job in jobs if job.job_id[:1].isdecimal()}


def _job(cells: list[str]) -> Job:
    of = dict(zip(_COLUMNS, (cell.strip() for cell in cells), strict=False))
    return Job(
        job_id=of["i"],
        name=of["j"],
        state=full_state(of["T"]),
        reason=text_of(of["r"]),
        partition=text_of(of["P"]),
        nodes=count(of["D"]),
        nodelist=text_of(of["N"]),
        priority=count(of["Q"]),
        start=moment(of["S"]),
        end=moment(of["e"]),
        used=duration(of["M"]),
        limit=duration(of["l"]),
        submitted=moment(of["V"]),
    )


def full_state(text: str) -> str:
    """The state in full: "CANCELLED by 1000" and "CANCELLED+" are CANCELLED, "R" is RUNNING."""
    word = (text.split() or [""])[0].rstrip("+").upper()
    return _SHORT.get(word, word)


def group_of(state: str) -> Group:
    """Where a job is. A state that we don't know is nobody's end: the job is asked for again."""
    if state in _WAITING:
        return "waiting"
    if state in _RUNNING:
        return "running"
    return "ended" if state in _CAUSES else "unknown"


def cause_of(state: str, reason: str = "", exit_code: str = "") -> str | None:
    """Why a job that left no word of its own has ended, in our words (`CAUSES`); None while it has not.

    Args:
        state: as squeue or sacct writes it.
        reason: squeue's reason.
        exit_code: "code:signal", of sacct or scontrol.
    """
    cause = _CAUSES.get(full_state(state))
    if cause != "lost":
        return cause
    return _CAUSES_BY_EXIT.get(exit_code) or _CAUSES_BY_REASON.get(reason.partition("(")[0]) or cause
