"""The interface to schedulers: the request of a job, a job in the queue, and a scheduler's dialect.

A dialect is pure functions: commands as lists of arguments, and the parsing of their answers. `core/slurm` has the
first one. `blocks/scheduler` at home and `remote/scheduler/commands.py` on the login node run the commands.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from slurm_ray_flow.core.cluster_report import CheckResult, Load, PartitionTable
from slurm_ray_flow.core.errors import OptionError, Rejected
from slurm_ray_flow.core.run import Event, find_event
from slurm_ray_flow.remote.shared.protocol import TRY

Group = Literal["waiting", "running", "ended", "unknown"]
Argv = list[str]


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """The request of one job. For "" and None the default of the partition or the site counts.

    Attributes:
        name: the job's name, by which it is found again.
        nodes: how many nodes, exactly.
        cpus_per_node, gpus_per_node: of each node.
        memory: bytes of each node.
        time_limit: seconds.
        partition, account, qos, constraint, reservation, exclude: as the scheduler takes them.
        extra: more options of the command that submits, each one text: "--mail-type=END" or "-w c1".
        output: the file that gets both outputs of the job, an absolute path.
        chdir: where the job starts.
        warn_seconds: how long before its end the job's script gets SIGUSR1; 0 for no warning.
    """

    name: str
    nodes: int = 1
    cpus_per_node: int | None = None
    gpus_per_node: int = 0
    memory: int | None = None
    time_limit: float | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    exclude: str = ""
    extra: tuple[str, ...] = ()
    output: str = ""
    chdir: str = ""
    warn_seconds: int = 0

    def refuse_control_characters(self) -> None:
        """See that each text can be an argument of a command.

        Raises:
            OptionError: a text holds a control character.
        """
        for field, value in vars(self).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and any(not letter.isprintable() for letter in text):
                    raise OptionError(f"{field}={text!r} holds a control character", advice="write it on one line")


@dataclasses.dataclass(frozen=True)
class Job:
    """One job as the queue shows it; each dialect has a class of its own. None and "" stand for unknown values.

    Attributes:
        job_id: the number; in Slurm "7_1" for a task of an array, "7+1" for a part of a heterogeneous job.
        state: the scheduler's own word, in full: "PENDING".
        reason: why the job waits, or why it failed.
        nodes: the number of nodes.
        nodelist: the names of the nodes, once the job has them.
        priority: a job with a higher priority starts earlier.
        start, end: seconds since 1970; for a waiting job, the scheduler's estimate.
        used, limit: seconds; infinity for no limit.
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
        """The group of the job's state; "unknown" for a state that the dialect does not list."""
        raise NotImplementedError

    @property
    def cause(self) -> str | None:
        """The cause of the job's end if the run has no outcome, one of the words of `CAUSES`; None before the end."""
        raise NotImplementedError


_LONGEST = 40


def job_name(function: str, run_id: str) -> str:
    """The name under which a run is in the queue: "train.6f1c..."."""
    plain = re.sub("[^A-Za-z0-9_-]+", "-", function.rpartition(":")[2].rpartition(".")[2]).strip("-")
    return f"{plain[:_LONGEST] or 'run'}.{run_id}"


def run_of(name: str) -> str:
    """The id of the run of a job with this name; "" for a job of another program."""
    return name.partition(".")[2]


@dataclasses.dataclass(frozen=True)
class SubmissionRules:
    """The rules by which the login node runs the command that submits.

    Attributes:
        job_id: patterns whose first group is the job's id in a line of its output; an earlier pattern counts more.
        dropped: prefixes of variables that would change the job, and are removed.
        kept: a pattern of variables that stay although they have such a prefix.
        defaults: a user's variables for all jobs, each with the field of a request that overrules it.
        command_text: the text for a shell before the script's path, where the command takes no path of a script.
    """

    job_id: Sequence[str]
    dropped: Sequence[str] = ()
    kept: str = ""
    defaults: Mapping[str, str] = dataclasses.field(default_factory=dict)
    command_text: Callable[[JobRequest], str] | None = None

    def of(self, request: JobRequest) -> dict[str, Any]:
        """The rules for one submission, as JSON can hold them."""
        applying = [variable for variable, field in self.defaults.items() if not getattr(request, field)]
        text = self.command_text(request) if self.command_text else ""
        fields = {"job_id": self.job_id, "dropped": self.dropped, "kept": self.kept}
        return {**fields, "defaults": applying, "command_text": text}


class _CauseOfEnd(Protocol):
    def __call__(self, job: Job | None, words: str, *, began: bool) -> tuple[str, str]: ...


@dataclasses.dataclass(frozen=True)
class SiteDialect:
    """The part of a dialect about a site's resources. A site is the result of `parse`.

    Attributes:
        commands: the commands that describe a site, by the names of `parse`'s parameters.
        counted: the commands among them that the scheduler's controller answers; their rate is limited.
        parse: makes a site of the commands' outputs.
        check: raises `Rejected` for a request that the site can't fulfil, with the limit and an alternative.
        finding: whether the site would take such a job, as a line of `srf check`.
        load: the load of this partition, or of the default one for "".
        table: the site's partitions, as a table and for scripts.
        advice: what to try when the scheduler does not answer.
    """

    commands: Mapping[str, Argv]
    counted: Sequence[str]
    parse: Callable[..., Any]
    check: Callable[[JobRequest, Any, str], None]
    finding: Callable[[Any, JobRequest], CheckResult]
    load: Callable[[Any, str], Load]
    table: Callable[[Any], PartitionTable]
    advice: str


@dataclasses.dataclass(frozen=True)
class Dialect:
    """The commands of one scheduler, and the parsing of their outputs.

    Attributes:
        name: the scheduler's name for people: "Slurm".
        submit_command: the command that submits, without the script's path; raises `OptionError` for a wrong request.
        rules: how the login node runs that command.
        answer_unknown: whether the job may be in the queue although the command failed with this text.
        is_transient: whether the same submission may succeed a moment later.
        words: the messages of the command itself in its stderr.
        rejected: the error for a refusal, from stderr and the cluster's name.
        submitted_nothing: the error for a command that succeeds and leaves no job, from stdout, stderr and the name.
        queue_command: lists all jobs of a user, also those that have just ended.
        parse_queue: the jobs in the output of `queue_command`, by their ids.
        cancel_command: ends the job of this id and, unless "", this name; with True it only signals the job's script.
        cause_of_end: cause and message of a job's end, from the end of its log and whether our program had begun.
        directives: the lines of a job script that make the same request.
        explain: why a job waits, in one line, from the jobs that `pending_command` lists and the cluster's time.
        pending_command: lists the pending jobs of a partition.
        nodes_of: the names in a node list.
        accounting_command: lists a user's jobs of the last days, or those of these names; None without accounting.
        parse_accounting: the jobs in the output of `accounting_command`, by their ids.
        processes_command: prints a line if a job's node knows processes of the job; None where no command can tell.
        site: the part about the site's resources; None where the scheduler does not describe them.
    """

    name: str
    submit_command: Callable[[JobRequest], Argv]
    rules: SubmissionRules
    answer_unknown: Callable[[str], bool]
    is_transient: Callable[[str], bool]
    words: Callable[[str], str]
    rejected: Callable[[str, str], Rejected]
    submitted_nothing: Callable[[str, str, str], Rejected]
    queue_command: Callable[[str], Argv]
    parse_queue: Callable[[str], Mapping[str, Job]]
    cancel_command: Callable[[str, str, bool], Argv]
    cause_of_end: _CauseOfEnd
    directives: Callable[[JobRequest], list[str]] = lambda _: []
    explain: Callable[[Job, Iterable[Job], float], str] = lambda job, _, __: f"waits: {job.reason or job.state}"
    pending_command: Callable[[str], Argv] | None = None
    nodes_of: Callable[[str], list[str]] = str.split
    accounting_command: Callable[[str, Sequence[str]], Argv] | None = None
    parse_accounting: Callable[[str], Mapping[str, Job]] = lambda _: {}
    processes_command: Callable[[str], Argv] | None = None
    site: SiteDialect | None = None


def goes_on(dialect: Dialect, job: Job, events: Sequence[Event]) -> bool:
    """Whether a job may still have the run's program, or get it: neither has it ended, nor has the program lost it.

    A program that has begun does not begin a second time in a job that was put back into the queue.
    """
    if job.group == "waiting":
        return find_event(events, "allocated") is None
    return job.group != "ended" and not _lacks_head(dialect, job, events)


def end_of_job(
    dialect: Dialect, job: Job | None, accounted: Job | None, left: Mapping[str, Any], events: Sequence[Event]
) -> tuple[str, str]:
    """The cause and the message for a run whose program is gone from its job.

    Args:
        dialect: how the scheduler is spoken to.
        job: as the queue has it; None where it does not name it.
        accounted: as accounting has it.
        left: what the operation `scheduler.words` found in the run's folder.
        events: what the program has recorded.
    """
    if job is not None and job.group != "ended":
        return _without_program(dialect, job, events)
    if job is None and accounted is None and not left["submitted"]:
        never = f"the run was never submitted to {dialect.name}: the program that launched it is gone"
        return "lost", f"{never}{TRY}start the function again"
    began = find_event(events, "allocated") is not None
    cause, message = dialect.cause_of_end(job or accounted, left["words"], began=began)
    return cause, "The run was cancelled." if cause == "cancelled" and left["cancelled"] else message


def _without_program(dialect: Dialect, job: Job, events: Sequence[Event]) -> tuple[str, str]:
    """The same for a job that the scheduler goes on with."""
    if job.group == "waiting":
        by = f"by an administrator or by {dialect.name} itself"
        return "preempted", f"job {job.job_id} was put back into the queue, {by}"
    if not _lacks_head(dialect, job, events):
        killed = (
            f"all processes of job {job.job_id} were killed, {dialect.name}'s own too, which still calls it running"
        )
        return "node_failed", killed
    # Slurm keeps the other nodes for a job that has lost its first.
    return "node_failed", f"the first node of job {job.job_id} failed, with our program on it"


def _lacks_head(dialect: Dialect, job: Job, events: Sequence[Event]) -> bool:
    """Whether the head's node has been taken out of the job: it counts as down."""
    node = (find_event(events, "allocated") or {}).get("node")
    nodes = dialect.nodes_of(job.nodelist) if node and job.group == "running" else []
    return bool(nodes) and node not in nodes
