"""The next try of a failed run, and the retries of single steps."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Cancelled as CancelledState
from prefect.states import Failed
from prefect.tasks import exponential_backoff

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.errors import Cancelled, ConnectionFailed, SlurmRayFlowError
from slurm_ray_flow.core.interruption import interrupted
from slurm_ray_flow.core.launch_events import StepFailed, StepStarted, TryFailed, publish
from slurm_ray_flow.core.retries import NextTry
from slurm_ray_flow.core.run import CallEnd
from slurm_ray_flow.tasks.run import Run, where

P = ParamSpec("P")
R = TypeVar("R")


def is_transient(_task: Task[..., Any], _task_run: TaskRun, state: State[Any]) -> bool:
    """Whether another attempt at a step may help. (Prefect takes a plain function only, and ignores a partial.)

    A failed connection is not: it was tried again for long enough.
    """
    error = state.data.exception if hasattr(state.data, "exception") else state.data
    return isinstance(error, SlurmRayFlowError) and error.transient and not isinstance(error, ConnectionFailed)


RETRIED: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}
"""The policy of steps that may be repeated: three more attempts, after about 2, 4 and 8 seconds."""

ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
"""The policy of tasks whose inputs are not hashed and whose results are not stored."""


def step(**policy: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a step of a launch a task of its name in Prefect, whose start is an event of the launch.

    In Prefect a cancelled step is cancelled, and a step that gives the end of a call without a value has failed; the
    launch goes on with the result.

    Args:
        policy: further options of the task.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @task(name=function.__name__, task_run_name=function.__name__, **ONCE, **policy)
        @functools.wraps(function)
        def in_prefect(*args: P.args, **kwargs: P.kwargs) -> Any:
            publish(StepStarted(function.__name__))
            try:
                result = function(*args, **kwargs)
            except Cancelled as error:
                return CancelledState(message=error.what, data=error)
            if not isinstance(result, CallEnd) or result.outcome == "value":
                return result
            publish(StepFailed())
            state = CancelledState if result.cause == "cancelled" else Failed
            return state(message=result.message or result.cause, data=result)

        @functools.wraps(function)
        def run_step(*args: P.args, **kwargs: P.kwargs) -> R:
            result: Any = in_prefect(*args, **kwargs)
            if isinstance(result, State):
                result = cast(Any, result.data).result
            if isinstance(result, Cancelled):
                raise result
            return result  # type: ignore[no-any-return]

        return run_step

    return decorate


LOOK_SECONDS = 0.5


def begin_next_try(run: Run, failure: BaseException, next_try: NextTry, cluster: Cluster) -> None:
    """Report the reason for the next try and its changes, wait for its pause, and prepare the run for it.

    Raises:
        Cancelled: somebody cancelled the run meanwhile.
    """
    failed = TryFailed(failure, next_try.text)
    publish(failed)
    run.note(again=failed.text)
    _pause(run, next_try.pause, cluster)
    if next_try.changed and run.record.allocation == run.record.attempt:
        with contextlib.suppress(SlurmRayFlowError):  # the allocation ends by itself, later
            cluster.write(run.paths.cancel, b"")  # a warm allocation is too small for the next try
    run.begin_next_try()


def _pause(run: Run, seconds: float, cluster: Cluster) -> None:
    """Wait between two tries. A cancel at that time leaves a file on the cluster, which ends the wait."""
    deadline = time.monotonic() + seconds
    while True:
        interrupted()
        if _is_cancelled(run, cluster):
            run.call_ended = None  # the end of the earlier try is not the run's end
            raise Cancelled("the run was cancelled between two tries", where=where(run.record))
        seconds_left = deadline - time.monotonic()
        if seconds_left <= 0:
            return
        time.sleep(min(seconds_left, LOOK_SECONDS))


def _is_cancelled(run: Run, cluster: Cluster) -> bool:
    try:
        return run.paths.cancel.name in cluster.names(run.paths.folder)
    except SlurmRayFlowError:  # the cluster does not answer: the next try raises that
        return False
