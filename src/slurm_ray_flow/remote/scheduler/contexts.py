"""The scheduler whose job this process is in, by its environment variables."""

from __future__ import annotations

import os
from typing import Any, Dict

from slurm_ray_flow.remote.scheduler.job import JobContext, NoJob
from slurm_ray_flow.remote.scheduler.oar_job import OarJob
from slurm_ray_flow.remote.scheduler.slurm_job import SlurmJob

CONTEXTS = (SlurmJob, OarJob)
"""The class of each scheduler."""


def job_here() -> JobContext:
    """The job that this process is in, also one that another program submitted."""
    return next((context() for context in CONTEXTS if context.VARIABLE in os.environ), NoJob())


def context_of(spec: Dict[str, Any]) -> JobContext:
    """The job of a run; none for a run without a scheduler, even if this process is in some other job."""
    return job_here() if spec.get("scheduler") else NoJob()
