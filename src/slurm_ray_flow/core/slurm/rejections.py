"""What sbatch says when it gives no job id: a refusal, with its advice, or no answer at all."""

from __future__ import annotations

import re

from slurm_ray_flow.core.errors import Rejected

# sbatch gave up, but the controller may have the job: it must be looked for before it is submitted again.
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
# The controller does not have the job and would take it a moment later.
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


def answer_unknown(stderr: str) -> bool:
    """Whether the job may be in the queue although sbatch has failed: its answer was lost on the way."""
    return _has(stderr, _UNANSWERED)


def is_transient(stderr: str) -> bool:
    """Whether the same submission may succeed a moment later. If `answer_unknown`, look for the job first."""
    return _has(stderr, _UNANSWERED) or _has(stderr, _PASSING)


def rejected(stderr: str, where: str = "") -> Rejected:
    """The refusal with sbatch's own words, and what to do about it."""
    said = words(stderr)
    advice = next((advice for part, advice in _ADVICE if part in stderr.lower()), "")
    return Rejected(f"Slurm refused the job: {said or 'sbatch failed without a word'}", where=where, advice=advice)


def submitted_nothing(stdout: str, stderr: str, where: str = "") -> Rejected:
    """The error for an sbatch that succeeds, again and again, and leaves no job in the queue."""
    said = words(f"{stdout}\n{stderr}")
    told = f"; it said: {said}" if said else ""
    what = f"sbatch ended without an error, but Slurm has no job of this run{told}"
    advice = "run `type sbatch` there: a program of the site's or of yours may stand before Slurm's; ask the support"
    return Rejected(what, where=where, advice=advice)


def words(stderr: str) -> str:
    """What sbatch itself said, without its name before each line, and without what a site or a shell says around it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    told = [line for line in lines if _MARK.match(line)]
    errors = [line for line in told if not _CHATTER.search(line)]
    texts = [_TITLE.sub("", _MARK.sub("", line)) for line in errors or told or lines]
    return "; ".join(dict.fromkeys(texts))[:2000]


def _has(text: str, parts: tuple[str, ...]) -> bool:
    lower = text.lower()
    return any(part in lower for part in parts)
