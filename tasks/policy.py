"""What all tasks share: when to try again, and what Prefect keeps."""

from __future__ import annotations

from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from slurm_ray_flow.core.errors import ConnectionFailed, SlurmRayFlowError


def is_transient(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help. (Prefect takes a plain function only: a partial would silently mean never.)

    A connection has been tried again for long enough when it fails.
    """
    error = state.data.exception if hasattr(state.data, "exception") else state.data
    return isinstance(error, SlurmRayFlowError) and error.transient and not isinstance(error, ConnectionFailed)


RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}
"""For tasks that may be done again: up to three more tries, after about 2, 4 and 8 seconds."""

ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
"""For tasks whose inputs are not to be hashed and whose result is not to be written."""
