"""Which scheduler's job this process is in, by the variables that it has."""

from __future__ import annotations

import os
from typing import Any, Dict

from slurm_ray_flow.remote.scheduler.job import JobContext, NoJob
from slurm_ray_flow.remote.scheduler.slurm_job import SlurmJob

CONTEXTS = (SlurmJob,)
"""Every scheduler's."""


def job_here() -> JobContext:
    """The job that this process is in, whoever submitted it."""
    return next((context() for context in CONTEXTS if context.VARIABLE in os.environ), NoJob())


def context_of(spec: Dict[str, Any]) -> JobContext:
    """The job of a run; a run that was submitted to no scheduler has none, though this may be within somebody's."""
    return job_here() if spec.get("scheduler") else NoJob()
