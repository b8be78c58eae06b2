"""What a head knows of the Slurm job that it runs in. Outside of one it knows nothing, and asks nobody."""

from __future__ import annotations

import os
import socket
from typing import Any, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.asking import said_by

ASK_SECONDS = 10.0
_MIB = 1 << 20
_GROUP = "SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"


def in_job(spec: Dict[str, Any]) -> bool:
    """Whether this run was submitted to Slurm, and this is its job."""
    return bool(spec.get("scheduler")) and "SLURM_JOB_ID" in os.environ


def described() -> Dict[str, Any]:
    """What the event `allocated` says of the job."""
    names = {"job": "SLURM_JOB_ID", "nodelist": "SLURM_JOB_NODELIST", "partition": "SLURM_JOB_PARTITION"}
    return {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}


def node_name() -> str:
    """This node as Slurm calls it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def nodes() -> List[str]:
    """The job's nodes as Slurm calls them; this one is the first."""
    listed = os.environ.get("SLURM_JOB_NODELIST", "")
    return (said_by(["scontrol", "show", "hostnames", listed], ASK_SECONDS) or "").split() or [node_name()]


def with_share(spec: Dict[str, Any]) -> Dict[str, Any]:
    """The spec with what the job has of this node, where the user left that to Slurm."""
    if not in_job(spec):
        return spec
    cpus = spec.get("cpus") or _number("SLURM_CPUS_ON_NODE")
    memory = spec.get("memory") or _memory(cpus)
    store = spec.get("object_store_memory") or _object_store(memory)
    return {**spec, "cpus": cpus, "memory": memory, "object_store_memory": store}


def seconds_left() -> Optional[float]:
    """How long the job may go on; None where Slurm sets no limit, or does not say."""
    return _duration((said_by(["squeue", "-h", "-j", _id(), "-o", "%L"], ASK_SECONDS) or "").strip())


def state() -> Tuple[str, str]:
    """The job's state and reason as Slurm says now."""
    said = said_by(["scontrol", "--oneliner", "show", "job", _id()], ASK_SECONDS) or ""
    fields = dict(part.partition("=")[::2] for part in said.split() if "=" in part)
    return fields.get("JobState", ""), fields.get("Reason", "")


def own_address(towards: str) -> str:
    """This node's address as another node of the job reaches it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards, 9))  # sends nothing: it only asks which way it would go
        return str(probe.getsockname()[0])


def _id() -> str:
    return os.environ.get("SLURM_JOB_ID", "")


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
