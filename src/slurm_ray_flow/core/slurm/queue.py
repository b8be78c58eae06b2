r"""The command of `squeue` for all jobs of the user, its answer, and the cause of a job's end.

The columns are joined by `\x1f`, which squeue prints unchanged and no column contains (22.05). Times are seconds since
1970, by SLURM_TIME_FORMAT, which all versions pass to strftime, since the cluster's time zone is not known.
Jobs that have ended stay in the queue for a while (MinJobAge, 300 s by default), and are listed, too. `--jobs` is not
used, because it fails for an id that Slurm has forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from slurm_ray_flow.core.scheduler import Group, Job

_TIME = re.compile(r"(?:(\d{1,12})-)?(?:(\d{1,12}):)?(\d{1,12}):(\d{1,12})(\.\d+)?")
_AMOUNT = re.compile(r"(\d{1,20}(?:\.\d+)?)([KMGTP]?)[nc]?", re.IGNORECASE)
_POWERS = {"": 2, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
_NOTHING = {"", "N/A", "NONE", "(NULL)", "UNKNOWN", "NOT_SET", "INVALID", "NOTSET"}
_NO_MOMENT = 4_294_967_294  # Slurm's NO_VAL, and above it INFINITE
NO_LIMIT = float("inf")


def is_nothing(text: str) -> bool:
    """Whether a column has one of Slurm's words for "no value"."""
    return text.strip().upper() in _NOTHING


def text_of(text: str) -> str:
    """The column's text, "" where it has none."""
    return "" if is_nothing(text) else text.strip()


def duration(text: str) -> float | None:
    """Seconds of "1-02:03:04", "02:03:04", "3:04.5", or a bare number of minutes; no limit is infinite."""
    text = text.strip().upper()
    if text in {"UNLIMITED", "INFINITE"}:
        return NO_LIMIT
    if text.isdecimal() and len(text) <= 12:
        return float(text) * 60
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:4])
    if days and match[2] is None:  # "1-12:30" has no seconds
        hours, minutes, seconds = minutes, seconds, 0
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds + float(match[5] or 0)


def moment(text: str) -> float | None:
    """A time in seconds since 1970; None for a text in another form, whose time zone is not known."""
    text = text.strip()
    return float(text) if text.isdecimal() and 0 < float(text) < _NO_MOMENT else None


def memory(text: str) -> int | None:
    """Bytes of "3900", "3900M", "4Gn", "1.50T": a number alone is MiB."""
    match = _AMOUNT.fullmatch(text.strip())
    return int(float(match[1]) * 1024 ** _POWERS[match[2].upper()]) if match else None


def count(text: str) -> int | None:
    """A whole number; "4+" is 4 (sinfo writes so of nodes that differ), "1.2K" is 1228 (squeue, of many nodes)."""
    match = re.fullmatch(r"(\d{1,20}(?:\.\d+)?)([KM]?)\+?", text.strip())
    return int(float(match[1]) * {"": 1, "K": 1024, "M": 1024**2}[match[2]]) if match else None


def limit(text: str) -> float | None:
    """A count that may be no limit at all, which is infinite."""
    return NO_LIMIT if text.strip().upper() in {"UNLIMITED", "INFINITE"} else count(text)


MOST = 100_000
"""The most names in a host list, more than any cluster has: a text from a cluster must not fill the memory."""
_LETTERS, _DIGITS, _RANGES = 10_000_000, 20, 8
"""The most letters of a host list, digits of a number and ranges of a name."""


def expanded(text: str) -> list[str]:
    """All names of a host list, in order."""
    names: list[str] = []
    letters = 0
    for part in re.findall(r"(?:[^,\[]+|\[[^\]\[]*\])+", text):
        for name in _expanded_part(part) if part.count("[") <= _RANGES else [part]:
            letters += len(name)
            if len(names) >= MOST or letters > _LETTERS:
                return names
            names.append(name)
    return names


def _expanded_part(part: str) -> Iterator[str]:
    match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if match is None:
        yield part
        return
    prefix, ranges, suffix = match.groups()
    for number in _numbers_of(ranges):
        for rest in _expanded_part(suffix) if suffix else [""]:
            yield prefix + number + rest


def _numbers_of(ranges: str) -> Iterator[str]:
    for item in ranges.split(","):
        first, _, last = item.partition("-")
        numbers = re.fullmatch(rf"\d{{1,{_DIGITS}}}-\d{{1,{_DIGITS}}}", item)
        if numbers and int(first) <= int(last):
            yield from (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        else:
            yield item


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
    "BadConstraints": "rejected",  # sbatch refused the job, which is in the queue all the same, as FAILED
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


class SlurmJob(Job):
    """A job of Slurm's."""

    @property
    def group(self) -> Group:
        return group_of(self.state)

    @property
    def cause(self) -> str | None:
        return cause_of(self.state, self.reason)


def queue_command(user: str) -> list[str]:
    """The command for all jobs of a user, with those that have just ended."""
    return [*_ENVIRONMENT, "squeue", "--noheader", "--states=all", f"--user={user}", f"--format={_FORMAT}"]


def pending_command(partition: str) -> list[str]:
    """The command for all pending jobs of these partitions ("cpu" or "cpu,gpu"), to count those ahead."""
    return [
        *_ENVIRONMENT,
        *("squeue", "--noheader", "--states=PENDING", f"--partition={partition}", f"--format={_FORMAT}"),
    ]


def processes_command(job_id: str) -> list[str]:
    """The command that prints a line if the job's node knows processes of its script; some sites do not allow it."""
    return ["sstat", "--noheader", "--parsable2", f"--jobs={job_id}.batch", "--format=JobID"]


def parse_queue(text: str) -> dict[str, SlurmJob]:
    """The jobs by their ids, in the order of the answer; other lines are ignored."""
    jobs = [_job(line.split(SEPARATOR)) for line in text.splitlines() if line.count(SEPARATOR) >= len(_COLUMNS) - 1]
    return {job.job_id: job for job in jobs if job.job_id[:1].isdecimal()}


def _job(cells: list[str]) -> SlurmJob:
    fields = dict(zip(_COLUMNS, (cell.strip() for cell in cells), strict=False))
    return SlurmJob(
        job_id=fields["i"],
        name=fields["j"],
        state=full_state(fields["T"]),
        reason=text_of(fields["r"]),
        partition=text_of(fields["P"]),
        nodes=count(fields["D"]),
        nodelist=text_of(fields["N"]),
        priority=count(fields["Q"]),
        start=moment(fields["S"]),
        end=moment(fields["e"]),
        used=duration(fields["M"]),
        limit=duration(fields["l"]),
        submitted=moment(fields["V"]),
    )


def full_state(text: str) -> str:
    """The state in full: "CANCELLED by 1000" and "CANCELLED+" are CANCELLED, "R" is RUNNING."""
    word = (text.split() or [""])[0].rstrip("+").upper()
    return _SHORT.get(word, word)


def group_of(state: str) -> Group:
    """The group of a job's state; a job in an unknown state has not ended, and is polled on."""
    if state in _WAITING:
        return "waiting"
    if state in _RUNNING:
        return "running"
    return "ended" if state in _CAUSES else "unknown"


def cause_of(state: str, reason: str = "", exit_code: str = "") -> str | None:
    """The cause (one of `CAUSES`) of a job's end whose run has no event of its own end; None before its end.

    Args:
        state: as squeue or sacct writes it.
        reason: squeue's reason.
        exit_code: "code:signal", of sacct or scontrol.
    """
    cause = _CAUSES.get(full_state(state))
    if cause != "lost":
        return cause
    return _CAUSES_BY_EXIT.get(exit_code) or _CAUSES_BY_REASON.get(reason.partition("(")[0]) or cause
