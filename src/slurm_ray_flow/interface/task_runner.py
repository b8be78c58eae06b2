"""Prefect's own tasks in pilots: the task runner of a flow.

Prefect's task engine runs each task at home, in a thread, and the body of the task alone is carried out in a pilot. So
states, retries, caches, hooks and what a task waits for are Prefect's own, and a node needs no way to its server.
"""

from __future__ import annotations

import functools
import inspect
import io
import logging
import pickle
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from copy import copy
from typing import Any, cast

from prefect import Task
from prefect.client.schemas.objects import RunInput, State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.futures import PrefectConcurrentFuture, PrefectFuture
from prefect.logging.loggers import get_run_logger
from prefect.settings.context import get_current_settings
from prefect.task_engine import run_task_sync
from prefect.task_runners import TaskRunner

from slurm_ray_flow.core.errors import OptionError, PayloadError, ServerError
from slurm_ray_flow.core.grid.model import ItemState
from slurm_ray_flow.core.items import outcome_of_item
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import shorten
from slurm_ray_flow.grid.outcome_log import Frame
from slurm_ray_flow.interface.campaign_outcomes import value_of
from slurm_ray_flow.interface.task_calls import CallsInPilots
from slurm_ray_flow.remote.driver.task_call import MARK
from slurm_ray_flow.remote.shared.pickler import ValuePickler
from slurm_ray_flow.remote.shared.pickling import Sources, itself

LEAST_IN_HAND = 200
"""So many tasks may run at a time, or two for each worker where that is more; the others wait at home."""
_OF_TASKS = ("retries", "retry_on", "cache", "on_out_of_memory", "on_time_limit", "outputs", "overwrite_outputs")
"""Options that belong to the run of a single function, for which a task has options of its own or none."""


class ClusterTaskRunner(TaskRunner[PrefectConcurrentFuture[Any]]):
    """Runs the tasks of a Prefect flow in pilots on a cluster: few allocations, many tasks.

    Write `@flow(task_runner=ClusterTaskRunner(cluster="curnagl", cpus_per_node=16, keep_warm="10m"))`; the flow's
    `task.submit` and `task.map` run there.

    Args:
        max_pilots: the most pilots, each an allocation of its own.
        workers: how many tasks a pilot runs at a time; None takes one for each of its GPUs, or else of its CPUs.
        options: those of the decorator that describe an allocation, its packages and files. `keep_warm` is how long a
            pilot without tasks waits for more, also for those of a next flow run; by default it ends with the flow run.
            Ray is started with `ray="always"` alone; a pilot has one task at a time then.

    Raises:
        OptionError: an option is unknown, has a wrong value, or is none of a task runner.
    """

    def __init__(self, *, max_pilots: int = 1, workers: int | None = None, **options: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if wrong := sorted(options.keys() & set(_OF_TASKS)):
            what = f"{wrong[0]} is no option of a task runner"
            raise OptionError(what, advice="a task has options of its own: @task(retries=2, cache_policy=...)")
        for name, count in (("max_pilots", max_pilots), ("workers", workers)):
            if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
                raise OptionError(f"{name}={count!r} must be a whole number of 1 or more")
        self._chosen = {"max_pilots": max_pilots, "workers": workers, **options}
        self._max_pilots, self._workers = max_pilots, workers
        self._options = Options().but(**{"ray": "never", **options})
        self._executor: ThreadPoolExecutor | None = None
        self._calls: CallsInPilots | None = None

    def duplicate(self) -> ClusterTaskRunner:
        """A runner with the same options, not started."""
        return type(self)(**self._chosen)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClusterTaskRunner) and self._chosen == other._chosen

    __hash__ = None  # type: ignore[assignment]

    def __enter__(self) -> ClusterTaskRunner:
        if get_current_settings().api.url is None:
            what = (
                "the flow runs on a server that Prefect has made for this process alone, and pilots can't be seen there"
            )
            advice = "call the flow inside `with slurm_ray_flow.on_the_server():`, or set PREFECT_API_URL"
            raise ServerError(what, advice=advice)
        super().__enter__()
        each = self._workers or self._options.gpus_per_node or self._options.cpus_per_node or 1
        in_hand = max(LEAST_IN_HAND, 2 * self._max_pilots * each)
        self._executor = ThreadPoolExecutor(in_hand, thread_name_prefix="srf-task")
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        cancel = isinstance(error, BaseException) and not isinstance(error, Exception)
        if cancel and self._calls is not None:
            self._calls.end(cancel=True)
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        if not cancel and self._calls is not None:
            self._calls.end(cancel=False, keep_open=bool(self._options.keep_warm))
        self._executor, self._calls = None, None
        super().__exit__(kind, error, traceback)

    def submit(
        self,
        task: Task[Any, Any],
        parameters: dict[str, Any],
        wait_for: Iterable[PrefectFuture[Any]] | None = None,
        dependencies: dict[str, set[RunInput]] | None = None,
    ) -> PrefectConcurrentFuture[Any]:
        """Have a task run, once what it waits for has ended; gives a future at once.

        Raises:
            RuntimeError: the runner is not started.
            OptionError: the task is a generator.
        """
        if self._executor is None:
            raise RuntimeError("Task runner is not started")
        if task.isgenerator:
            what = f"the task {task.name!r} is a generator, whose values can't come home one by one"
            raise OptionError(what, advice="collect what it yields and return a list")
        task_run_id = uuid.uuid4()
        body = _Body(task, self._calls_of(task))
        run = functools.partial(
            body.run, task_run_id=task_run_id, parameters=parameters, wait_for=wait_for, dependencies=dependencies
        )
        future: Future[Any] = self._executor.submit(copy_context().run, run)
        return PrefectConcurrentFuture(task_run_id=task_run_id, wrapped_future=future)

    def _calls_of(self, task: Task[Any, Any]) -> CallsInPilots:
        """The way to the pilots, which the first task opens: by then it is known which flow this is."""
        if self._calls is None:
            context = FlowRunContext.get()
            flow = context.flow if context else None
            source, name = (task.fn, task.name) if flow is None else (flow.fn, flow.name)
            logger = get_run_logger(context) if context else self.logger
            chosen = (self._options, self._max_pilots, self._workers)
            self._calls = CallsInPilots(source, f"tasks of {name}", *chosen, logger.warning)
        return self._calls


class NotCarriedOut(BaseException):
    """The end of a task whose body did not get to an end: no exception of the body's, so that Prefect sees a crash."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


class _Body:
    """One task for Prefect's engine: the body is carried out in a pilot."""

    def __init__(self, task: Task[Any, Any], calls: CallsInPilots) -> None:
        self._task, self._calls = task, calls
        self._task_run: TaskRun | None = None

    def run(self, **run: Any) -> State[Any]:
        """Run the task; gives its final state."""
        remote = copy(self._task)
        remote.fn = functools.wraps(self._task.fn)(lambda *args, **kwargs: self._carry_out(args, kwargs))
        remote.isasync, remote.timeout_seconds = False, None  # the pilot awaits, and limits the body's own time
        context = {"cancel_event": threading.Event()}
        try:
            return cast(State[Any], run_task_sync(task=remote, return_type="state", context=context, **run))
        except BaseException as error:
            state = self._task_run.state if self._task_run else None
            if state is None or not state.is_crashed():
                raise
            state.data = error.error if isinstance(error, NotCarriedOut) else error
            return state

    def _carry_out(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        context = TaskRunContext.get()
        assert context is not None, "Prefect's engine calls it"
        self._task_run = context.task_run
        call = self._pickled(args, kwargs)
        try:
            frame = self._calls.submit(call).result()
        except BaseException as error:
            raise NotCarriedOut(error) from None
        if frame.kind != ItemState.SUCCEEDED:
            self._raise_failure(frame)
        answer = value_of(frame)
        _log(answer["output"])
        get_run_logger().debug("It took %.3f s on %s.", answer["seconds"], answer["host"])
        outcome = outcome_of_item(answer["kind"], answer["data"], answer["host"])
        if outcome.exception is not None:
            shorten(outcome.exception)
        return outcome.unwrap()

    def _raise_failure(self, frame: Frame) -> None:
        _log(self._calls.log(frame.number))
        try:
            value_of(frame)
        except BaseException as error:
            raise NotCarriedOut(error) from None

    def _pickled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The call, for a pilot.

        Raises:
            PayloadError: it can't be pickled.
        """
        task_run = self._task_run
        assert task_run is not None
        known = ("id", "name", "flow_run_id", "task_key", "dynamic_key", "run_count", "tags")
        about = {
            "task": {"name": self._task.name, "description": self._task.description, "tags": set(self._task.tags)},
            "task_run": {name: getattr(task_run, name) for name in known},
            "timeout_seconds": self._task.timeout_seconds,
            "uses_prefect": _uses_prefect(self._task.fn),
            "level": logging.getLogger("prefect.task_runs").getEffectiveLevel(),
        }
        try:
            function, arguments = _dumped((self._task.fn, Sources())), _dumped((args, kwargs))
        except Exception as error:
            what = f"the task {self._task.name!r} or an argument can't be pickled: {type(error).__name__}: {error}"
            advice = "give plain data, and open files, generators, locks and connections inside the task"
            raise PayloadError(what, advice=advice) from error
        return pickle.dumps((function, arguments, about), protocol=5)


class _BodyPickler(ValuePickler):
    """Pickles a task as its plain function: inside a pilot a task that is called runs in place."""

    def reducer_override(self, obj: Any) -> Any:
        """The reduced form of an object."""
        if issubclass(type(obj), Task):
            return itself, (obj.fn,)
        return super().reducer_override(obj)


def _dumped(value: Any) -> bytes:
    file = io.BytesIO()
    _BodyPickler(file, lambda _: True).dump(value)
    return file.getvalue()


def _uses_prefect(function: Callable[..., Any]) -> bool:
    """Whether a function imports Prefect itself. What its module has imported is loaded with it."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return any(name.partition(".")[0] == "prefect" for name in getattr(code, "co_names", ()))


def _log(output: str) -> None:
    """Give what a task printed and logged in a pilot to its task run's log."""
    logger = get_run_logger()
    for line in output.split("\n"):
        if line.startswith(MARK):
            level, _, text = line[1:].partition(MARK)
            logger.log(int(level), "%s", text)
        elif line.strip():
            logger.info("%s", line)
