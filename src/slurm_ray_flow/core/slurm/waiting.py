"""The reason that a job waits, in plain words, and whether the job can start by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from slurm_ray_flow.core.quantities import format_start
from slurm_ray_flow.core.scheduler import Job


class Explanation(NamedTuple):
    """The meaning of a reason.

    Attributes:
        text: the words after "waits".
        hopeless: the job will not start by itself, however long it waits.
        advice: what the user can do; "" for nothing but to wait.
    """

    text: str
    hopeless: bool = False
    advice: str = ""


_LESS = "cancel it and ask for less; `srf clusters NAME` shows what there is"
_HELD_ADVICE = "`scontrol release JOB` on the cluster lets it go, or cancel it"
_SUPPORT = "ask the site's support"
_REASONS = {
    "None": Explanation("to be looked at by the scheduler"),
    "Priority": Explanation("behind jobs of a higher priority"),
    "Resources": Explanation("for free nodes"),
    "Prolog": Explanation("for its nodes to be prepared"),
    "Dependency": Explanation("for another job that it depends on"),
    "DependencyNeverSatisfied": Explanation(
        "for another job that will never end as it should", True, "cancel it, and leave out --dependency"
    ),
    "BeginTime": Explanation("for its time to begin"),
    "Licenses": Explanation("for a free license"),
    "Reservation": Explanation("for its reservation to begin"),
    "ReservationDeleted": Explanation("for a reservation that was deleted", True, "take another reservation, or none"),
    "ReservationInvalid": Explanation("for a reservation that is not valid", True, "take another reservation, or none"),
    "Cleaning": Explanation("until its last try is cleaned up"),
    "NodeDown": Explanation("for a node that is down"),
    "ReqNodeNotAvail": Explanation("for nodes that are down, drained or reserved"),
    "Nodes required for job are DOWN": Explanation("for nodes that are down, drained or kept for other jobs"),
    "FrontEndDown": Explanation("for a front end that is down"),
    "PartitionDown": Explanation("for the partition to be opened: it starts no jobs now"),
    "PartitionInactive": Explanation("for the partition to be opened: it is inactive now"),
    "PartitionTimeLimit": Explanation("in vain: its time limit is more than the partition's", True, _LESS),
    "PartitionNodeLimit": Explanation(
        "in vain: it asks for more nodes than the partition allows or has in service", True, _LESS
    ),
    "PartitionConfig": Explanation("in vain: it asks for more than the partition has or allows", True, _LESS),
    "BadConstraints": Explanation("in vain: no node is as it asks for", True, _LESS),
    "Constraints": Explanation("for nodes that are as it asks for, and are not there now"),
    "MaxMemPerLimit": Explanation("in vain: it asks for more memory than a job may have on a node", True, _LESS),
    "AccountNotAllowed": Explanation(
        "in vain: its account may not use this partition", True, "write another account= or partition="
    ),
    "QOSNotAllowed": Explanation(
        "in vain: its QoS may not be used in this partition", True, "write another qos= or partition="
    ),
    "InvalidAccount": Explanation("in vain: its account is not valid", True, "write another account="),
    "InvalidQOS": Explanation("in vain: its QoS is not valid", True, "write another qos="),
    "AccountingPolicy": Explanation("in vain: it is against the site's accounting policy", True, _LESS),
    "JobHeldUser": Explanation("because it is held by its user", True, _HELD_ADVICE),
    "JobHeldAdmin": Explanation("because an administrator holds it", True, _SUPPORT),
    "JobHoldMaxRequeue": Explanation(
        "because it failed to start too often and is held", True, f"cancel it; if it happens again, {_SUPPORT}"
    ),
    "launch failed requeued held": Explanation(
        "because a node could not start it, and is held", True, f"cancel it; if it happens again, {_SUPPORT}"
    ),
    "job requeued in held state": Explanation("because it was put back into the queue and is held", True, _HELD_ADVICE),
    "QOSUsageThreshold": Explanation("until less was used of its QoS lately"),
    "QOSJobLimit": Explanation("until other jobs of its QoS have ended: it allows no more at once"),
    "QOSResourceLimit": Explanation("until other jobs of its QoS have ended: it allows no more at once"),
    "QOSTimeLimit": Explanation("in vain: its time limit is more than its QoS allows", True, _LESS),
    "AssociationJobLimit": Explanation("until other jobs of its account have ended: it allows no more at once"),
    "AssociationResourceLimit": Explanation("until other jobs of its account have ended: it allows no more at once"),
    "AssociationTimeLimit": Explanation("in vain: its time limit is more than its account allows", True, _LESS),
    "JobArrayTaskLimit": Explanation("until other tasks of its array have ended"),
    "BurstBufferResources": Explanation("for a free burst buffer"),
    "BurstBufferStageIn": Explanation("for its files to be brought into the burst buffer"),
    "PowerNotAvail": Explanation("for nodes to be powered"),
    "PowerReserved": Explanation("for nodes to be powered"),
    "SchedDefer": Explanation("for the scheduler's next round"),
    "FedJobLock": Explanation("for the other clusters of the federation"),
}
# Names of the site's limits: the limited party, the resource, and the scope.
_LIMITED = re.compile(r"(QOSGrp|QOSMax|QOSMin|AssocGrp|AssocMax|Max)(\w*?)(Limit|NotSatisfied)?$")
_WHO = {"QOSGrp": "its QoS", "QOSMax": "its QoS", "AssocGrp": "its account", "AssocMax": "its account"}
_RESOURCES = (
    ("CPU", "CPUs"),
    ("Cpu", "CPUs"),
    ("GRES", "GPUs or other such resources"),
    ("Mem", "memory"),
    ("Node", "nodes"),
    ("SubmitJob", "jobs"),
    ("Job", "jobs"),
    ("License", "licenses"),
    ("Wall", "time"),
    ("Billing", "billed units"),
    ("Energy", "energy"),
    ("BB", "burst buffer"),
)
_UNCOUNTED = {"memory", "time", "energy", "burst buffer"}


def explain(reason: str) -> Explanation:
    """The meaning of a reason of squeue."""
    name = re.split(r"[,(]", reason.replace("_", " "))[0].strip() or "None"
    known = _REASONS.get(name) or _REASONS.get(name.replace(" ", ""))
    if known is not None:
        missing = re.search(r"UnavailableNodes: ?(\S+)", reason.replace("_", " "))
        return known._replace(text=f"{known.text} ({missing[1]})") if missing else known
    partial = next((known for part, known in _REASONS.items() if " " in part and name.startswith(part)), None)
    if partial is not None:
        return partial
    return _explain_limit(name) or Explanation(f'with the reason "{name}"')


def _explain_limit(name: str) -> Explanation | None:
    """The meaning of a limit: a limit over all jobs of a user passes with time, the limit of a single job never."""
    match = _LIMITED.fullmatch(name)
    if match is None:
        return None
    counted = re.sub("Per(?:Job|Node|User|Account)", "", match[2])
    what = next((words for part, words in _RESOURCES if part in counted), "resources")
    if match[1] == "QOSMin":
        return Explanation(f"in vain: it asks for fewer {what} than its QoS wants", True, "cancel it and ask for more")
    if "PerJob" in match[2] or "PerNode" in match[2]:
        return Explanation(f"in vain: it asks for more {what} than {_WHO.get(match[1], 'a limit')} allows", True, _LESS)
    owner = "you" if "PerUser" in match[2] else _WHO.get(match[1], "its account")
    verb = "have" if owner == "you" else "has"
    if "Minutes" in match[2] and "Run" not in match[2]:
        return Explanation(f"because {owner} {verb} used up the minutes of {what} for this period", False, _SUPPORT)
    much = "much" if what in _UNCOUNTED else "many"
    return Explanation(f"until other jobs have ended: {owner} {verb} as {much} {what} as allowed")


def ahead_of(job: Job, pending: Iterable[Job]) -> int | None:
    """The number of jobs of the same partition before this one; None where it is not known.

    Args:
        job: the waiting job.
        pending: all pending jobs, as `pending_command` lists them; a list without this job is older than the job.
    """
    partitions, pending_jobs = set(job.partition.split(",")), list(pending)
    if job.priority is None or all(other.job_id != job.job_id for other in pending_jobs):
        return None
    rivals = [other for other in pending_jobs if partitions & set(other.partition.split(","))]
    return sum(_is_before(other, job) for other in rivals if not explain(other.reason).hopeless)


def _is_before(other: Job, job: Job) -> bool:
    priority, job_priority = other.priority or 0, job.priority or 0
    return priority > job_priority or (priority == job_priority and _number(other) < _number(job))


def _number(job: Job) -> int:
    match = re.match(r"\d{1,20}", job.job_id)
    return int(match[0]) if match else 0


def waiting_text(job: Job, ahead: int | None = None, now: float | None = None) -> str:
    """One line for people: the reason for the wait, the number of jobs ahead, and the start that Slurm expects.

    Args:
        job: the job in the queue.
        ahead: the number of jobs before it; None where it is not known.
        now: the cluster's time in seconds since 1970; None leaves the expected start out.
    """
    why = explain(job.reason)
    partition = f" in partition {job.partition}" if job.reason in {"Resources", "Priority"} else ""
    parts = [f"waits {why.text}{partition}"]
    if why.hopeless:
        return f"{parts[0]}: it will not start by itself; {why.advice}"
    if ahead:
        parts.append(f"{ahead} job is ahead" if ahead == 1 else f"{ahead} jobs are ahead")
    if now is not None and job.start is not None and job.start > now:
        parts.append(f"Slurm expects it to start {format_start(job.start, now)}")
    return "; ".join(parts)
