"""The dialect of OAR 2.5 (see `core/scheduler.py`): `oarsub`, `oarstat`, `oardel`, and their answers.

`oarstat -u` lists live jobs only, and `-j` needs an id for each ended one. The restriction by SQL lists both, and finds
a job by its name. Times are seconds since 1970. What OAR prints was recorded from version 2.5.9.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slurm_ray_flow.core.errors import OptionError, Rejected
from slurm_ray_flow.core.oar import site
from slurm_ray_flow.core.quantities import format_start
from slurm_ray_flow.core.scheduler import Dialect, Group, Job, JobRequest, SubmissionRules

RECENT_SECONDS = 900
"""Seconds for which the queue lists jobs that have ended."""
ACCOUNT_SECONDS = 7 * 86400
WARNING_SIGNAL = 10
"""SIGUSR1, which the head takes for a warning. OAR repeats it every ten seconds until the walltime."""
BEST_EFFORT = "besteffort"

_GROUPS: dict[str, Group] = {
    **dict.fromkeys(("Waiting", "Hold", "toLaunch", "toAckReservation"), "waiting"),
    **dict.fromkeys(("Launching", "Running", "Suspended", "Resuming", "Finishing", "toError"), "running"),
    **dict.fromkeys(("Terminated", "Error"), "ended"),
}
_CAUSES = {
    "WALLTIME": "time_limit",
    "BESTEFFORT_KILL": "preempted",
    "WORKING_DIRECTORY": "environment",
    "OUTPUT_FILES": "environment",
    "CPUSET_ERROR": "node_failed",
    "CPUSET_CLEAN_ERROR": "node_failed",
    "PING_CHECKER_NODE_SUSPECTED": "node_failed",
    "EXTERMINATE_JOB": "node_failed",
    "FRAG_JOB_REQUEST": "cancelled",
}
"""The cause that an event of a job tells. The first one in this order counts: OAR also frags a job at its walltime."""


@dataclasses.dataclass(frozen=True)
class OarJob(Job):
    """A job of OAR's.

    Attributes:
        events: the types of the job's events, with their texts.
        exit_status: the wait status of the job's command, as `os.wait` has it; None where it did not end by itself.
        cores: the number of its resources, which are cores on most sites.
    """

    events: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exit_status: int | None = None
    cores: int | None = None

    @property
    def group(self) -> Group:
        return _GROUPS.get(self.state, "unknown")

    @property
    def cause(self) -> str | None:
        if self.group != "ended":
            return None
        return next((cause for event, cause in _CAUSES.items() if event in self.events), "lost")


# ---- the queue


def queue_command(user: str) -> list[str]:
    """The command for all jobs of a user that have not ended, or have ended lately."""
    return _jobs_command(user, f"(stop_time = 0 OR stop_time > {_moments_ago(RECENT_SECONDS)})")


def accounting_command(user: str, names: Sequence[str] = ()) -> list[str]:
    """The command for all jobs of a user of the last days, or for those of these names."""
    if names:
        return _jobs_command(user, f"job_name IN ({', '.join(map(_sql_text, names))})")
    return _jobs_command(user, f"submission_time > {_moments_ago(ACCOUNT_SECONDS)}")


def _jobs_command(user: str, restriction: str) -> list[str]:
    return ["oarstat", "-f", "-J", "--sql", f"job_user = {_sql_text(user)} AND {restriction}"]


def _moments_ago(seconds: float) -> int:
    return int(time.time() - seconds)


def _sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def parse_queue(text: str) -> dict[str, OarJob]:
    """The jobs by their ids, the oldest first: a job that OAR has submitted again comes after the one that it replaces.

    Without a job oarstat prints nothing.
    """
    jobs = [_job(fields) for fields in site.objects(text) if "Job_Id" in fields]
    return {job.job_id: job for job in sorted(jobs, key=lambda job: int(job.job_id))}


def _job(fields: Mapping[str, Any]) -> OarJob:
    nodes = [str(name) for name in fields.get("assigned_network_address") or []]
    start, end = _moment(fields.get("startTime")), _moment(fields.get("stopTime"))
    limit = fields.get("walltime")
    has_begun = start is not None and _GROUPS.get(str(fields.get("state"))) != "waiting"
    return OarJob(
        job_id=str(int(fields["Job_Id"])),
        name=str(fields.get("name") or ""),
        state=str(fields.get("state") or ""),
        reason=str(fields.get("message") or ""),
        partition=str(fields.get("queue") or ""),
        nodes=len(nodes) or None,
        nodelist=" ".join(nodes),
        start=start if has_begun else _moment(fields.get("scheduledStart")) or start,
        end=end,
        used=max(0.0, (end or time.time()) - start) if has_begun and start else None,
        limit=float(limit) if isinstance(limit, int | float) and limit > 0 else None,
        submitted=_moment(fields.get("submissionTime")),
        events={str(event.get("type")): str(event.get("description") or "") for event in fields.get("events") or []},
        exit_status=fields.get("exit_code") if isinstance(fields.get("exit_code"), int) else None,
        cores=len(fields.get("assigned_resources") or []) or None,
    )


def _moment(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value > 0 else None


# ---- a submission


def _command_text(request: JobRequest) -> str:
    """The job's command before the script's path. The job opens its output itself.

    OAR refuses many letters in a file's name, and takes a node out of service for an apostrophe in a folder's.
    """
    return f"cd {shlex.quote(request.chdir)} && exec >>{shlex.quote(request.output)} 2>&1 /bin/sh"


RULES = SubmissionRules(job_id=(r"^OAR_JOB_ID=(\d+)$",), dropped=("OAR_",), command_text=_command_text)
"""A refusal has a negative id (`OAR_JOB_ID=-5`), which the pattern leaves out."""

_FIELDS = {
    **dict.fromkeys(("resource", "l"), "nodes=, cpus_per_node=, gpus_per_node= and time_limit"),
    **dict.fromkeys(("property", "p"), "constraint"),
    **dict.fromkeys(("queue", "q"), "partition"),
    "project": "account",
    **dict.fromkeys(("name", "n"), "name"),
}
_OURS = (
    *("array", "array-param-file", "checkpoint", "signal", "directory", "d", "stdout", "O", "stderr", "E", "hold"),
    *("interactive", "I", "connect", "C", "scanscript", "S", "reservation", "r", "anterior", "a", "resubmit", "help"),
    *("h", "version", "V", "json", "J", "xml", "X", "yaml", "Y", "dumper", "D"),
)


def submit_command(request: JobRequest) -> list[str]:
    """The command without the job's own command, which comes last.

    Raises:
        OptionError: OAR has no such option, each run sets it itself, or a text can't be an argument.
    """
    return ["oarsub", *[word for option in _options(request) for word in option if word]]


def _options(request: JobRequest) -> list[tuple[str, str]]:
    """The options of oarsub, each with its value; "" for none."""
    request.refuse_control_characters()
    for name, advice in _WITHOUT.items():
        if getattr(request, name):
            raise OptionError(f"{name}={getattr(request, name)!r} can't be requested from OAR", advice=advice)
    is_best_effort, warning = request.partition == BEST_EFFORT, str(request.warn_seconds or "")
    options = [
        ("-n", request.name),
        ("-l", resources(request)),
        ("-t", BEST_EFFORT if is_best_effort else ""),
        ("-q", "" if is_best_effort else request.partition),
        ("--project", request.account),
        ("-p", request.constraint),
        ("--checkpoint", warning),
        ("--signal", str(WARNING_SIGNAL) if warning else ""),
        ("-O", "/dev/null"),
        ("-E", "/dev/null"),
    ]
    return [*(option for option in options if option[1]), *map(_checked_option, request.extra)]


_WITHOUT = {
    "memory": 'OAR gives a job the memory of its cores: ask for more cpus_per_node=, or constraint="memnode >= 128"',
    "qos": 'leave it out, or take a queue: partition="besteffort"',
    "reservation": "leave it out",
    "exclude": "write constraint=\"network_address != 'NODE'\"",
}


def resources(request: JobRequest) -> str:
    """The resources as `oarsub -l` takes them: "/nodes=2/core=16,walltime=1:30:00".

    Cores are counted below a node, or below a GPU where GPUs are requested, as OAR's tree of resources has them.
    """
    text = f"/nodes={request.nodes}"
    cores = request.cpus_per_node
    if request.gpus_per_node:
        text += f"/gpu={request.gpus_per_node}"
        cores = None if cores is None else -(-cores // request.gpus_per_node)
    text += f"/core={cores}" if cores else ""
    return text if request.time_limit is None else f"{text},walltime={_walltime(request.time_limit)}"


def _walltime(seconds: float) -> str:
    whole = int(-(-seconds // 1))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _checked_option(option: str) -> tuple[str, str]:
    match = re.fullmatch(r"--([a-z][a-z0-9-]*)(?:[= ](.*))?|-([A-Za-z])(?: *(\S.*))?", option)
    if match is None:
        raise OptionError(f"{option!r} is no option of oarsub", advice='write each as one text: "-t idempotent"')
    name = match[1] or match[3]
    if name in _FIELDS:
        raise OptionError(f"{option!r} has an option of its own here", advice=f"write {_FIELDS[name]}=... instead")
    if name in _OURS:
        raise OptionError(f"{option!r} can't be given: each run sets it itself", advice="leave it out")
    value = match[2] if match[1] else match[4]
    return f"{'--' if match[1] else '-'}{name}", value or ""


def directives(request: JobRequest) -> list[str]:
    """The lines of a job script that make the same request by `oarsub -S`."""
    return [f"#OAR {name} {shlex.quote(value)}" if value else f"#OAR {name}" for name, value in _options(request)]


# ---- refusals

_LATER = (
    "db connection error",
    "cannot connect to executor",
    "could not connect to the socket",
    "connection refused",
    "connection timed out",
    "too many connections",
)
_NOISE = re.compile(r"^(?:LINE \d+|HINT|DBD::|\^|\.\.\.|\))|Oarsub failed|[Ss]et default walltime")
_MARK = re.compile(r"^(?:/!\\ *)?(?:\[ADMISSION RULE\] *)?(?:\[?ERROR\]? *:? *)?(?:Error: *)?")
_PROPERTY = "`oarnodes` there lists each node's properties"
_ADVICE = (
    ("not enough resources", "ask for fewer nodes=, cpus_per_node= or gpus_per_node=; `srf clusters NAME` shows them"),
    ("does not exist", f"write constraint= with a property that there is: {_PROPERTY}"),
    ("bad resource request", f'write constraint= as a condition of SQL, such as "cpu_count > 1"; {_PROPERTY}'),
    ("cannot recognize", "take the option out of the extra ones"),
    ("unknown job type", "take it out of the types: this site does not know it"),
    ("admin queue", "take another partition=: this queue is for administrators"),
    ("walltime", "ask for less time_limit=: the queue or the site has a limit"),
    ("project", "write account= with a project of yours"),
)


def answer_unknown(stderr: str) -> bool:
    """Whether the job may be in the queue although oarsub has failed: OAR keeps what it could not announce."""
    return "cannot connect to executor" in stderr.lower()


def is_transient(stderr: str) -> bool:
    """Whether the same submission may succeed a moment later."""
    return any(part in stderr.lower() for part in _LATER)


def words(stderr: str) -> str:
    """The messages of oarsub, without those of its database and without the notes of admission rules."""
    lines = [line.strip() for line in stderr.splitlines()]
    texts = [_MARK.sub("", line) for line in lines if line and not _NOISE.search(line)]
    return "; ".join(dict.fromkeys(text for text in texts if text))[:2000]


def rejected(stderr: str, where: str = "") -> Rejected:
    """The error with oarsub's own messages, and advice about them."""
    message = words(stderr)
    lower = message.lower()
    if "the queue" in lower and "does not exist" in lower:
        advice = "write partition= with a queue of the site: default, besteffort, or another one"
    else:
        advice = next((advice for part, advice in _ADVICE if part in lower), "")
    return Rejected(f"OAR refused the job: {message or 'oarsub failed without a word'}", where=where, advice=advice)


def submitted_nothing(stdout: str, stderr: str, where: str = "") -> Rejected:
    """The error for an oarsub that succeeds repeatedly, and leaves no job in the queue."""
    message = words(f"{stdout}\n{stderr}")
    what = f"oarsub ended without an error, but OAR has no job of this run{f'; it said: {message}' if message else ''}"
    return Rejected(what, where=where, advice="run `type oarsub` there: a program of the site's may stand before OAR's")


# ---- a wait, and an end


def cancel_command(number: str, name: str = "", gently: bool = False) -> list[str]:  # noqa: ARG001 - ids are unique
    """The command that ends one job, or with `gently` signals its first process, which then ends the job in order.

    OAR ends a job by SIGKILL at once.
    """
    return ["oardel", *(["-s", "SIGTERM"] if gently else []), number]


def explain(job: Job, pending: Iterable[Job], now: float) -> str:  # noqa: ARG001 - OAR predicts the start itself
    """Why a job waits, in one line."""
    if job.state == "Hold":
        return "waits because it is held by its user: it will not start by itself; `oarresume ID` there lets it go"
    if job.state == "toLaunch":
        return "waits for its nodes to be prepared"
    without = re.search(r"[Cc]annot determine scheduling time[^(]*", job.reason)
    if without:
        return f"waits, and OAR says: {without[0].strip()}"
    line = f"waits for free resources in queue {job.partition}"
    if job.start is not None and job.start > now:
        return f"{line}; OAR expects it to start {format_start(job.start, now)}"
    return line


_TEXTS = {
    "time_limit": "OAR ended the job: its walltime passed",
    "preempted": "OAR took the nodes back for another job, since this one was best-effort",
    "node_failed": "a node of the job failed",
    "cancelled": "the job was cancelled in OAR",
    "environment": "the job ended before our program had started",
    "lost": "the job is gone and left no word",
}


def cause_of_end(job: Job | None, words: str, *, began: bool) -> tuple[str, str]:
    """The cause and the message of a job's end; `core/scheduler.py` says more."""
    cause = (job.cause if job else None) or "lost"
    if cause == "lost" and job is not None and not began:
        cause = "environment"
    text = _TEXTS.get(cause, cause)
    if isinstance(job, OarJob):
        nodes = f" on {job.nodelist.replace(' ', ', ')}" if job.nodelist else ""
        status = "" if job.exit_status is None else f", {_exit_text(job.exit_status)}"
        said = _said(job) if cause in ("environment", "node_failed", "cancelled") else ""
        text += f" (job {job.job_id}{nodes}: {job.state}{status}{said})"
    log_end = words.strip()[-1500:] if cause in ("lost", "environment", "node_failed") else ""
    return cause, f"{text}\n{log_end}".strip()


def _exit_text(status: int) -> str:
    return f"ended by signal {status & 127}" if status & 127 else f"exit code {status >> 8}"


def _said(job: OarJob) -> str:
    texts = [text for event, text in job.events.items() if event in _CAUSES and text]
    return f", {texts[0]}" if texts else ""


OAR = Dialect(
    name="OAR",
    submit_command=submit_command,
    rules=RULES,
    answer_unknown=answer_unknown,
    is_transient=is_transient,
    words=words,
    rejected=rejected,
    submitted_nothing=submitted_nothing,
    queue_command=queue_command,
    parse_queue=parse_queue,
    cancel_command=cancel_command,
    cause_of_end=cause_of_end,
    directives=directives,
    explain=explain,
    accounting_command=accounting_command,
    parse_accounting=parse_queue,
    site=site.DIALECT,
)
