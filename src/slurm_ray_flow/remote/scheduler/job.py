"""What a head knows of the Slurm job that it runs in. Outside of one it knows nothing, and asks nobody."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from typing import Any, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.shared.events import RunFiles, tail
from slurm_ray_flow.remote.shared.processes import said_by

ASK_SECONDS = 10.0
_MIB = 1 << 20
MARGIN = 5.0
"""Seconds before Slurm's own limit at which the run ends itself."""


def in_job(spec: Dict[str, Any]) -> bool:
    """Whether this run was submitted to Slurm, and this is its job."""
    return bool(spec.get("scheduler")) and "SLURM_JOB_ID" in os.environ


def described() -> Dict[str, Any]:
    """What the event `allocated` says of the job."""
    names = {"job": "SLURM_JOB_ID", "nodelist": "SLURM_JOB_NODELIST", "partition": "SLURM_JOB_PARTITION"}
    found = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
    return {**found, "node": node_name()}


def node_name() -> str:
    """This node as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def nodes() -> List[str]:
    """The job's nodes as Slurm calls them; this one is the first."""
    listed = os.environ.get("SLURM_JOB_NODELIST", "")
    return (said_by(["scontrol", "show", "hostnames", listed], ASK_SECONDS) or "").split() or [node_name()]


def with_share(spec: Dict[str, Any]) -> Dict[str, Any]:
    """The spec with what the job has of this node and of time, where the user left that to Slurm."""
    if not in_job(spec):
        return spec
    cpus = spec.get("cpus") or _number("SLURM_CPUS_ON_NODE")
    memory = spec.get("memory") or _memory(cpus)
    store = spec.get("object_store_memory") or _object_store(memory)
    share = {"cpus": cpus, "memory": memory, "object_store_memory": store}
    wanted, lasts = spec.get("time_limit"), _lasts(spec)
    limits = [float(limit) for limit in (wanted, lasts) if limit is not None]
    return {**spec, **share, "time_limit": min(limits, default=None), "lasts": lasts}


def why_ended(run: RunFiles) -> Tuple[str, str]:
    """Cause and message for a SIGTERM: home's own cancel, or what Slurm wrote into the job's log before it sent it.

    A job that was put back into the queue is taken out of it: a run that has begun does not begin a second time.
    """
    if os.path.exists(run.cancel):
        return "cancelled", "The run was cancelled."
    said = [line for line in tail(run.head_log).splitlines() if "CANCELLED AT" in line]
    for words, cause, message in _ENDS:
        if said and words in said[-1]:
            if words == _PUT_BACK:
                said_by(["scancel", os.environ.get("SLURM_JOB_ID", "")], ASK_SECONDS)
            return cause, message
    if is_preempted():
        return "preempted", _PREEMPTED
    number = os.environ.get("SLURM_JOB_ID", "")
    return "cancelled", "Job {} was cancelled in Slurm by somebody, not through this package.".format(number)


def is_preempted() -> bool:
    """Whether Slurm has begun to take the nodes back for another job."""
    return _fields().get("PreemptTime", "None") not in ("None", "Unknown")


_PREEMPTED = "Slurm took the nodes back for a job with a higher priority."
_PUT_BACK = "DUE TO JOB REQUEUE"
_ENDS = (
    ("DUE TO TIME LIMIT", "time_limit", "Slurm ended the job: its time limit passed."),
    ("DUE TO PREEMPTION", "preempted", _PREEMPTED),
    (_PUT_BACK, "preempted", "The job was put back into the queue, by an administrator or by Slurm itself."),
    ("DUE TO NODE FAILURE", "node_failed", "Slurm ended the job: one of its nodes failed."),
)


def _lasts(spec: Dict[str, Any]) -> Optional[float]:
    """Seconds until a little before the job's end, so that the run's end is told by us; Slurm counts in minutes."""
    if spec.get("time_limit") is not None:
        whole = 60.0 * math.ceil((float(spec["time_limit"]) + float(spec.get("keep_warm") or 0.0)) / 60)
    else:
        end = _number("SLURM_JOB_END_TIME")
        known = end - time.time() if end else _duration(_fields().get("TimeLimit", ""))
        if known is None:
            return None
        whole = known
    return whole - MARGIN


def _fields() -> Dict[str, str]:
    """What Slurm says of this job now."""
    said = said_by(["scontrol", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", "")], ASK_SECONDS) or ""
    return {name: value for name, is_one, value in (part.partition("=") for part in said.split()) if is_one}


def own_address(towards: str) -> str:
    """This node's address as another node of the job reaches it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing: it only asks which way it would go
        return str(probe.getsockname()[0])


def address_for_login() -> str:
    """This node's address as the node reaches it from which the job was submitted."""
    for towards in (os.environ.get("SLURM_SUBMIT_HOST", ""), node_name()):
        with contextlib.suppress(OSError):
            if towards:
                return own_address(towards)
    return "127.0.0.1"


def _number(variable: str) -> Optional[int]:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() and int(text) else None


def _memory(cpus: Optional[int]) -> Optional[int]:
    whole, each = _number("SLURM_MEM_PER_NODE"), _number("SLURM_MEM_PER_CPU")
    if whole:
        return whole * _MIB
    return each * cpus * _MIB if each and cpus else None


def _object_store(memory: Optional[int]) -> Optional[int]:
    """Three tenths, as Ray itself takes of a machine; it looks at the machine, and not at the job's share."""
    return None if memory is None else max(80 * _MIB, memory * 3 // 10)


def _duration(text: str) -> Optional[float]:
    """Slurm's "1-02:03:04", "02:03", as seconds."""
    days, _, rest = text.rpartition("-")
    try:
        seconds = 0
        for part in rest.split(":"):
            seconds = 60 * seconds + int(part)
        return float(86400 * int(days or 0) + seconds)
    except ValueError:
        return None
