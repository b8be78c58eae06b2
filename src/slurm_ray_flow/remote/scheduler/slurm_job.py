"""The Slurm job that a head runs in."""

from __future__ import annotations

import math
import os
import time
from typing import Any, Dict, List, Optional, Tuple

from slurm_ray_flow.remote.scheduler.job import JobContext
from slurm_ray_flow.remote.scheduler.node_launcher import NodeLauncher, Srun
from slurm_ray_flow.remote.shared.events import RunFiles, tail
from slurm_ray_flow.remote.shared.processes import output_of

ASK_SECONDS = 10.0
_MIB = 1 << 20


class SlurmJob(JobContext):
    """A job of Slurm's, by its variables, by `scontrol`, and by Slurm's lines in the job's log."""

    name = "Slurm"
    VARIABLE = "SLURM_JOB_ID"
    control_group = "/job_"

    def described(self) -> Dict[str, Any]:
        names = {"job": self.VARIABLE, "nodelist": "SLURM_JOB_NODELIST", "partition": "SLURM_JOB_PARTITION"}
        fields = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
        return {**fields, "node": self.node_name()}

    def node_name(self) -> str:
        return os.environ.get("SLURMD_NODENAME") or super().node_name()

    def nodes(self) -> List[str]:
        listed = os.environ.get("SLURM_JOB_NODELIST", "")
        return (output_of(["scontrol", "show", "hostnames", listed], ASK_SECONDS) or "").split() or super().nodes()

    def launcher(self) -> NodeLauncher:
        return Srun()

    def submit_host(self) -> str:
        return os.environ.get("SLURM_SUBMIT_HOST", "")

    def cpus(self) -> Optional[int]:
        return _number("SLURM_CPUS_ON_NODE")

    def memory(self, cpus: Optional[int]) -> Optional[int]:
        per_node, per_cpu = _number("SLURM_MEM_PER_NODE"), _number("SLURM_MEM_PER_CPU")
        if per_node:
            return per_node * _MIB
        return per_cpu * cpus * _MIB if per_cpu and cpus else None

    def granted(self, seconds: float) -> float:
        """Slurm counts in minutes."""
        return 60.0 * math.ceil(seconds / 60)

    def remaining(self) -> Optional[float]:
        end = _number("SLURM_JOB_END_TIME")
        return end - time.time() if end else _duration(_job_fields().get("TimeLimit", ""))

    def is_preempted(self) -> bool:
        return _job_fields().get("PreemptTime", "None") not in ("None", "Unknown")

    def why_ended(self, run: RunFiles, signal_name: str) -> Tuple[str, str]:  # noqa: ARG002 - Slurm says more
        """Cause and message by home's cancellation, or by Slurm's line in the job's log before the signal.

        A requeued job is cancelled: a run must not begin a second time.
        """
        if os.path.exists(run.cancel):
            return "cancelled", "The run was cancelled."
        lines = [line for line in tail(run.head_log).splitlines() if "CANCELLED AT" in line]
        for marker, cause, message in _ENDS:
            if lines and marker in lines[-1]:
                if marker == _REQUEUED:
                    output_of(["scancel", os.environ.get(self.VARIABLE, "")], ASK_SECONDS)
                return cause, message
        if self.is_preempted():
            return "preempted", _PREEMPTED
        number = os.environ.get(self.VARIABLE, "")
        return "cancelled", "Job {} was cancelled in Slurm by somebody, not through this package.".format(number)


_PREEMPTED = "Slurm took the nodes back for a job with a higher priority."
_REQUEUED = "DUE TO JOB REQUEUE"
_ENDS = (
    ("DUE TO TIME LIMIT", "time_limit", "Slurm ended the job: its time limit passed."),
    ("DUE TO PREEMPTION", "preempted", _PREEMPTED),
    (_REQUEUED, "preempted", "The job was put back into the queue, by an administrator or by Slurm itself."),
    ("DUE TO NODE FAILURE", "node_failed", "Slurm ended the job: one of its nodes failed."),
)


def _job_fields() -> Dict[str, str]:
    """Slurm's present fields of this job."""
    output = output_of(["scontrol", "--oneliner", "show", "job", os.environ.get("SLURM_JOB_ID", "")], ASK_SECONDS) or ""
    return {name: value for name, separator, value in (part.partition("=") for part in output.split()) if separator}


def _number(variable: str) -> Optional[int]:
    text = os.environ.get(variable, "")
    return int(text) if text.isdigit() and int(text) else None


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
