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
"""The policy of steps that may be repeated: three more attempts, after about 2, 4 and 8 seconds."""

ONCE: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False}
"""The policy of tasks whose inputs are not hashed and whose results are not stored."""


def step(**policy: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a step of a launch a task of its name in Prefect, whose start is an event of the launch.

    One that somebody cancelled is cancelled there, and one that gives the end of a call without a value has failed,
    while the launch goes on with what it gave.

    Args:
        policy: what else the task is given.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @task(name=function.__name__, task_run_name=function.__name__, **ONCE, **policy)
        @functools.wraps(function)
        def in_prefect(*args: P.args, **kwargs: P.kwargs) -> Any:
            publish(StepStarted(function.__name__))
            try:
                given = function(*args, **kwargs)
            except Cancelled as error:
                return CancelledState(message=error.what, data=error)
            if not isinstance(given, CallEnd) or given.outcome == "value":
                return given
            publish(StepFailed())
            state = CancelledState if given.cause == "cancelled" else Failed
            return state(message=given.message or given.cause, data=given)

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            given: Any = in_prefect(*args, **kwargs)
            if isinstance(given, State):
                given = cast(Any, given.data).result
            if isinstance(given, Cancelled):
                raise given
            return given  # type: ignore[no-any-return]

        return called

    return decorate


LOOK_SECONDS = 0.5


def begin_again(run: Run, failure: BaseException, again: NextTry, cluster: Cluster) -> None:
    """Report the reason for the next try and its changes, wait for its pause, and prepare the run for it.

    Raises:
        Cancelled: somebody cancelled the run meanwhile.
    """
    failed = TryFailed(failure, again.text)
    publish(failed)
    run.note(again=failed.text)
    _pause(run, again.pause, cluster)
    if again.changed and run.record.allocation == run.record.attempt:
        with contextlib.suppress(SlurmRayFlowError):  # it leaves by itself, later
            cluster.write(run.paths.cancel, b"")  # a warm one has too little of what the next try needs more of
    run.begin_again()


def _pause(run: Run, seconds: float, cluster: Cluster) -> None:
    """Wait between two tries. There is no try to end then: a cancel leaves its file, which ends the wait."""
    until = time.monotonic() + seconds
    while True:
        interrupted()
        if _is_cancelled(run, cluster):
            run.call_ended = None  # the end of the try before is not the run's
            raise Cancelled("the run was cancelled between two tries", where=where(run.record))
        left = until - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, LOOK_SECONDS))


def _is_cancelled(run: Run, cluster: Cluster) -> bool:
    try:
        return run.paths.cancel.name in cluster.names(run.paths.folder)
    except SlurmRayFlowError:  # it does not answer: the next try will say so
        return False
