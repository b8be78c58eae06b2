"""The request of a job, the arguments of `sbatch` for it, and the refusals of `sbatch`."""

from __future__ import annotations

import math
import re

from slurm_ray_flow.core.errors import OptionError, Rejected
from slurm_ray_flow.core.scheduler import JobRequest, SubmissionRules

MIB = 1024**2
LONGEST_WARNING = 65535


RULES = SubmissionRules(
    job_id=(r"Submitted batch job (\d+)\b", r"^(\d+)(?:;\S+)?$"),
    dropped=("SBATCH_", "SRUN_", "SLURM_"),
    kept="SLURM_(CONF|JWT|SACK|MPI_TYPE|PMIX|ROOT$|HOME$|DIR$|PREFIX$)|SBATCH_(ACCOUNT|PARTITION|QOS)$",
    defaults={"SBATCH_ACCOUNT": "account", "SBATCH_PARTITION": "partition", "SBATCH_QOS": "qos"},
)
"""Slurm's commands take nearly each of their options from a variable, too, and hand all variables on to the job."""


def sbatch_command(request: JobRequest) -> list[str]:
    """The command without the script's path; `remote/scheduler/commands.py` drops variables that would change it."""
    return ["sbatch", *sbatch_arguments(request)]


def sbatch_arguments(request: JobRequest) -> list[str]:
    """The arguments of `sbatch` without the script's path, which comes last; no shell reads them.

    GPUs are requested by `--gres`, which every Slurm knows; `--gpus-per-node` needs select/cons_tres.
    A node has one task, which starts the run's programs there. Slurm never requeues the job (`--no-requeue`), since the
    launch decides about a further try.

    Raises:
        OptionError: each run sets an extra option itself, or a text can't be an argument.
    """
    request.refuse_control_characters()
    extra = [part for option in request.extra for part in _checked_option(option)]
    return [*_run_arguments(request), *_resource_arguments(request), *_gres_argument(request), *extra]


def _run_arguments(request: JobRequest) -> list[str]:
    path = escaped_path(request.output) if request.output else ""
    return [
        "--parsable",
        f"--job-name={request.name}",
        f"--nodes={request.nodes}",
        "--ntasks-per-node=1",
        "--no-requeue",
        "--open-mode=append",
        *_option_texts({"--output": path, "--error": path, "--chdir": request.chdir}),
        *(["--no-kill"] if request.nodes > 1 else []),
    ]


def _resource_arguments(request: JobRequest) -> list[str]:
    warning = min(request.warn_seconds, LONGEST_WARNING)
    return _option_texts(
        {
            "--cpus-per-task": request.cpus_per_node or "",
            "--mem": f"{math.ceil(request.memory / MIB)}M" if request.memory else "",
            "--time": math.ceil(request.time_limit / 60) if request.time_limit else "",
            "--signal": f"B:USR1@{warning}" if warning > 0 else "",
            **{
                f"--{name}": getattr(request, name)
                for name in ("partition", "account", "qos", "constraint", "reservation", "exclude")
            },
        }
    )


def _option_texts(values: dict[str, str | int]) -> list[str]:
    return [f"{option}={value}" for option, value in values.items() if value != ""]


def escaped_path(path: str) -> str:
    r"""The path with escapes for `--output`, in which `%` begins a symbol.

    In a path with any backslash Slurm keeps `%`, and drops each backslash that is not escaped (seen with 22.05).
    """
    return path.replace("\\", "\\\\") if "\\" in path else path.replace("%", "%%")


# sbatch takes only the last --gres: the run's own and an extra one are joined.


def _gres_argument(request: JobRequest) -> list[str]:
    items = [item for option in request.extra if _name(option) == "gres" for item in _value(option).split(",")]
    gpu_items = [item for item in items if item.split(":")[0] == "gpu"]
    if any(_count(item) != request.gpus_per_node for item in gpu_items):
        raise OptionError(
            f"--gres={','.join(items)} asks for another number of GPUs than gpus_per_node={request.gpus_per_node}",
            advice='give the number twice: gpus_per_node=2 and "--gres=gpu:a100:2"',
        )
    if request.gpus_per_node and not gpu_items:
        items = [f"gpu:{request.gpus_per_node}", *items]
    return [f"--gres={','.join(items)}"] if items else []


def _count(item: str) -> int:
    last = item.partition("(")[0].rpartition(":")[2]
    return int(last) if last.isdecimal() else 1


_FIELDS = {
    **dict.fromkeys(("nodes", "N"), "nodes"),
    **dict.fromkeys(("cpus-per-task", "c"), "cpus_per_node"),
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "memory"),
    **dict.fromkeys(("gpus", "G", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "gpus_per_node"),
    **dict.fromkeys(("time", "t", "time-min"), "time_limit"),
    **dict.fromkeys(("job-name", "J"), "name"),
    **dict.fromkeys(("partition", "p"), "partition"),
    **dict.fromkeys(("account", "A"), "account"),
    **dict.fromkeys(("qos", "q"), "qos"),
    **dict.fromkeys(("constraint", "C"), "constraint"),
    "reservation": "reservation",
    **dict.fromkeys(("exclude", "x"), "exclude"),
    **dict.fromkeys(("export", "export-file"), "env_vars"),
}
_OURS = (
    *("array", "a", "chdir", "D", "clusters", "M", "error", "e", "help", "h", "input", "i", "no-kill", "k"),
    *("no-requeue", "open-mode", "output", "o", "parsable", "quiet", "Q", "requeue", "signal", "test-only", "usage"),
    *("version", "V", "wait", "W", "wrap", "ntasks", "n", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-node"),
    *("ntasks-per-socket", "tres-per-task"),
)
_LONG = re.compile(r"--([a-z][a-z0-9-]*)(?:=(.*))?")
_SHORT = re.compile(r"-([A-Za-z])(?: *(\S.*))?")


def _checked_option(option: str) -> list[str]:
    name = _name(option)
    if not name:
        raise OptionError(
            f"{option!r} is no option of sbatch", advice='write each as one text: "--mail-type=END" or "-w c1"'
        )
    full_name = _full_option_name(name)
    if full_name in _FIELDS:
        raise OptionError(f"{option!r} has an option of its own here", advice=f"write {_FIELDS[full_name]}=... instead")
    if full_name in _OURS:
        raise OptionError(f"{option!r} can't be given: each run sets it itself", advice="leave it out")
    if name == "gres":
        return []
    return [option] if option.startswith("--") else [f"-{name}", *filter(None, [_value(option)])]


def _name(option: str) -> str:
    match = _LONG.fullmatch(option) or _SHORT.fullmatch(option)
    return match[1] if match else ""


def _value(option: str) -> str:
    match = _LONG.fullmatch(option) or _SHORT.fullmatch(option)
    return (match[2] or "") if match else ""


def _full_option_name(name: str) -> str:
    """The full name of an option, since sbatch accepts a prefix of a long option."""
    options = [*_FIELDS, *_OURS]
    if name in options or len(name) == 1:
        return name
    return next((longer for longer in sorted(options) if longer.startswith(name) and len(longer) > 1), name)


# sbatch gave up, but the controller may have the job: look for the job before another submission.
_UNANSWERED = (
    "socket timed out",
    "receive failure",
    "zero bytes were transmitted",
    "connection timed out",
    "connection reset",
    "unexpected message received",
    "communication shutdown failure",
    "shutdown failure",
    "message send failure",
    "send failure",
)
# The controller does not have the job, and may accept it a moment later.
_PASSING = (
    "slurm temporarily unable to accept job",
    "resource temporarily unavailable",
    "unable to contact slurm controller",
    "communication connection failure",
    "connection refused",
    "backup controller in standby mode",
    "in standby mode",
    "rate limit exceeded",
    "protocol authentication error",
    "munge encode failed",
    "unable to establish configuration source",
    "unable to establish control machine address",
    "could not establish a configuration source",
    "job update not available right now",
)
_SCRIPT = "Slurm could not keep the job's script: its disk may be full; try again later, or tell the site's support"
_ADVICE = (
    ("account or account/partition", "write account=... (`sacctmgr show associations user=$USER` lists yours)"),
    ("invalid account", "write account=... (`sacctmgr show associations user=$USER` lists yours)"),
    ("must specify an account", "write account=... (`sacctmgr show associations user=$USER` lists yours)"),
    ("invalid partition name", "`srf clusters NAME` lists the partitions"),
    ("no partition specified", "write partition=...; `srf clusters NAME` lists them"),
    ("group not permitted", "ask the site's support for access to this partition, or take another one"),
    ("required partition not available", "take another partition; `srf clusters NAME` shows their state"),
    ("requested partition configuration", "take another partition; `srf clusters NAME` shows their limits"),
    ("nodes not in this partition", "take nodes= and exclude= that fit to the partition"),
    ("time limit is invalid", "ask for less time_limit=; `srf clusters NAME` shows each partition's"),
    ("memory required by task", "ask for less memory=; `srf clusters NAME` shows what a node has"),
    ("memory specification can not be satisfied", "ask for less memory=; `srf clusters NAME` shows what a node has"),
    ("cpu count", "ask for fewer cpus_per_node=; `srf clusters NAME` shows what a node has"),
    ("more processors requested", "ask for fewer cpus_per_node=; `srf clusters NAME` shows what a node has"),
    ("node count", "ask for fewer nodes=; `srf clusters NAME` shows each partition's limit"),
    ("generic resource", "ask for fewer gpus_per_node=, or take a partition with GPUs"),
    ("requested node configuration", "no node has this many CPUs, GPUs or memory; `srf clusters NAME` shows them"),
    ("invalid feature", "write constraint= with a feature that a node has; `srf clusters NAME` lists them"),
    ("invalid qos", "write qos=... (`sacctmgr show qos` lists them)"),
    (
        "maxsubmitjob",
        "wait until some of your jobs have ended; if you have none, write the account= that the site wants",
    ),
    ("grpsubmitjob", "wait until some jobs of your group have ended, or take another account="),
    ("walldurationperjob", "ask for less time_limit=, or take another qos="),
    ("memoryper", "ask for less memory=, or take another qos="),
    ("mempernode", "ask for less memory=, or take another qos="),
    ("memperjob", "ask for less memory=, or take another qos="),
    ("cpuper", "ask for fewer cpus_per_node= or nodes=, or take another qos="),
    ("nodeper", "ask for fewer nodes=, or take another qos="),
    ("gresper", "ask for fewer gpus_per_node= or nodes=, or take another qos="),
    ("qosmin", "ask for more: the QoS takes no job this small; or take another qos="),
    ("accounting/qos policy", "ask for less, wait until your other jobs have ended, or take another qos= or account="),
    ("maxjobcount", "the cluster has as many jobs as it takes; try again later"),
    ("reservation", "write reservation= with one that you may use now (`scontrol show reservation`), or leave it out"),
    ("license", "take the licenses out of the extra options, or write those that the site has"),
    ("quota exceeded", "the disk of the cluster is full: `srf clean` makes room"),
    ("no space left", "the disk of the cluster is full: `srf clean` makes room"),
    ("i/o error writing", _SCRIPT),
    ("unrecognized option", "take it out of the extra options: this Slurm does not know it"),
    ("invalid option", "take it out of the extra options: this Slurm does not know it"),
    ("access/permission denied", "ask the site's support whether you may submit jobs"),
    ("user unknown", "the cluster's Slurm does not know you: ask the site's support"),
    ("invalid user id", "the cluster's Slurm does not know you: ask the site's support"),
)
_MARK = re.compile(r"^(?:/\S*/)?sbatch: (?:error: |fatal: )?")
_CHATTER = re.compile(r"^sbatch: (?!error|fatal)|retrying", re.IGNORECASE)
_TITLE = re.compile(r"^(?:Batch job submission failed|allocation failure): ")


def scancel_command(number: str, name: str = "", gently: bool = False) -> list[str]:
    """The command that ends one job. With the name, it does not end another job to which Slurm has given the same id.

    Args:
        number: the job's id.
        name: the job's name, where that is known.
        gently: signal only the job's script, which then ends the job in order.
    """
    softly = ["--batch", "--signal=TERM"] if gently else []
    return ["scancel", *softly, *([f"--name={name}"] if name else []), number]


def answer_unknown(stderr: str) -> bool:
    """Whether the job may be in the queue although sbatch has failed, since the controller's answer was lost."""
    return _has(stderr, _UNANSWERED)


def is_transient(stderr: str) -> bool:
    """Whether the same submission may succeed a moment later. If `answer_unknown`, look for the job first."""
    return _has(stderr, _UNANSWERED) or _has(stderr, _PASSING)


def rejected(stderr: str, where: str = "") -> Rejected:
    """The error with sbatch's own messages, and advice about them."""
    message = words(stderr)
    advice = next((advice for part, advice in _ADVICE if part in stderr.lower()), "")
    return Rejected(f"Slurm refused the job: {message or 'sbatch failed without a word'}", where=where, advice=advice)


def submitted_nothing(stdout: str, stderr: str, where: str = "") -> Rejected:
    """The error for an sbatch that succeeds repeatedly, and leaves no job in the queue."""
    message = words(f"{stdout}\n{stderr}")
    suffix = f"; it said: {message}" if message else ""
    what = f"sbatch ended without an error, but Slurm has no job of this run{suffix}"
    advice = "run `type sbatch` there: a program of the site's or of yours may stand before Slurm's; ask the support"
    return Rejected(what, where=where, advice=advice)


def words(stderr: str) -> str:
    """The messages of sbatch itself, without its name before each line, and without lines of a site or a shell."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    own_lines = [line for line in lines if _MARK.match(line)]
    errors = [line for line in own_lines if not _CHATTER.search(line)]
    texts = [_TITLE.sub("", _MARK.sub("", line)) for line in errors or own_lines or lines]
    return "; ".join(dict.fromkeys(texts))[:2000]


def _has(text: str, parts: tuple[str, ...]) -> bool:
    lower = text.lower()
    return any(part in lower for part in parts)
