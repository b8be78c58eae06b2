"""The end of a launch: one log line and one event for automations about a failure, and the use of resources."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from prefect.artifacts import create_markdown_artifact
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.artifacts import artifact_key, short_name
from slurm_ray_flow.core.efficiency import killed_text, report
from slurm_ray_flow.core.errors import Cancelled, SlurmRayFlowError
from slurm_ray_flow.core.events import PrefectEvent, run_failed
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.progress import reporter
from slurm_ray_flow.core.run import CallEnd, Outcome
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.core.trace import tracing
from slurm_ray_flow.tasks.run import Run

_mine: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar(
    "slurm_ray_flow_background", default=None
)
_under_way: set[threading.Event] = set()
_leaving = threading.Event()


@contextlib.contextmanager
def in_background(cancelled: threading.Event | None = None) -> Iterator[None]:
    """Mark the block's launch as one that the end of the process does not wait for.

    Args:
        cancelled: where this is set, the launch in the block ends its run, and itself.
    """
    this = cancelled or threading.Event()
    token = _mine.set(this)
    _under_way.add(this)
    try:
        yield
    finally:
        _under_way.discard(this)
        _mine.reset(token)


def stop_if_leaving() -> None:
    """Stop this thread when the process is about to end; each wait of a launch calls this.

    Raises:
        Cancelled: somebody in this process has cancelled the launch.
    """
    this = _mine.get()
    if this is None:
        return
    if this.is_set():
        raise Cancelled("the run was cancelled by the program that launched it")
    if not _leaving.is_set():
        return
    _under_way.discard(this)
    threading.Event().wait()


def stop_background(patience: float) -> None:
    """Stop all launches in the background, when the process ends."""
    _leaving.set()
    deadline = time.monotonic() + patience
    while _under_way and time.monotonic() < deadline:
        time.sleep(0.01)


def tell_use(ended: CallEnd, cluster: Cluster, options: Options) -> None:
    """Show the run's use of resources, if there is a report. An error here does not lose the value."""
    if warning := killed_text(ended.usage):
        reporter().warn(warning)
        if flow_run.get_id():
            get_run_logger().warning(warning)
    use = report(ended.usage, options)
    if use is None:
        return
    reporter().say(use.line)
    if not flow_run.get_id():
        return
    try:
        get_run_logger().info(use.line)
        key = artifact_key("use", short_name(cluster.label))
        create_markdown_artifact(markdown=use.markdown(), key=key, description=use.line)
    except Exception as error:
        get_run_logger().debug("no artifact: %s", error)


LAUNCH = "launch"
"""The cause of a failure at home, before the cluster was involved."""

_ours: set[str] = set()
"""Flow runs whose launch reports its own failure."""


def tell_outcome(run: Run, outcome: Outcome) -> None:
    """Report the function's own exception; a value needs no report."""
    error = outcome.exception
    if error is None:
        return
    said = encodable(f"{type(error).__name__}: {error}")
    _tell(logging.ERROR, f"The function raised {said}\n{outcome.traceback.rstrip()}".rstrip())
    emit(run_failed(run.record, "user_code", said))


def tell_failure(run: Run, error: BaseException) -> None:
    """Report an error of the launch itself. Prefect reports interruptions."""
    if isinstance(error, Cancelled):
        _tell(logging.WARNING, str(error))
    elif isinstance(error, Exception):
        ours = isinstance(error, SlurmRayFlowError)
        _tell(logging.ERROR, f"{type(error).__name__}: {error}", exc_info=None if ours else error)
        emit(
            run_failed(run.record, getattr(error, "cause", "") or LAUNCH, encodable(getattr(error, "what", str(error))))
        )


def tell_by_itself(flow_run_id: str) -> None:
    """Keep Prefect's engine from reporting failures of this flow run and its tasks with its own frames."""
    if not tracing():
        _ours.add(flow_run_id)


@contextlib.contextmanager
def reported_once() -> Iterator[None]:
    """Raise an error of this package without the frames that Prefect's engine would add."""
    try:
        yield
    except SlurmRayFlowError as error:
        if identity := flow_run.get_id():
            tell_by_itself(identity)
        _tell(logging.ERROR, f"{type(error).__name__}: {error}")
        raise


def emit(notice: PrefectEvent) -> None:
    """Send an event in the background; failing to send it is no error."""
    try:
        emit_event(notice.event, resource=notice.resource, related=list(notice.related), payload=notice.payload)
    except Exception as error:
        logging.getLogger("prefect.slurm_ray_flow").debug("no event %s: %s", notice.event, error)


def _tell(level: int, text: str, exc_info: Any = None) -> None:
    if flow_run.get_id():
        get_run_logger().log(level, encodable(text), exc_info=exc_info)


class _Once(logging.Filter):
    """A log filter against messages of Prefect's engine about reported failures, and about successful tasks."""

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(record, "flow_run_id", "") not in _ours or record.module not in {"flow_engine", "task_engine"}:
            return True
        message = str(record.msg)
        if record.module == "task_engine" and message.startswith("Finished in state"):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
            return "Completed" not in message
        return not (
            record.levelno >= logging.ERROR
            and message.startswith(("Encountered exception during", "Engine execution exited", "Task run failed with"))
        )


_once = _Once()
for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_once)
