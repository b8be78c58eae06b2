"""The body of one of Prefect's tasks, as an item of a pilot. Prefect's own engine runs the task at home.

Where the body uses Prefect, `get_run_logger` and `prefect.runtime` work here as at home, and nothing asks a server:
what is logged is printed, with its level, and home gives all that was printed to the task run's log.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any, Dict, Iterator, Optional

from slurm_ray_flow.remote.driver import execution, item_outcomes
from slurm_ray_flow.remote.shared import pickling, script_end

MARK = "\x1e"
"""Begins a line that was logged; the level follows, and another one."""
KEPT = 16
"""So many functions stay loaded."""
LONGEST_OUTPUT = 1 << 20
"""The most bytes of a task's output that go home: its end."""


def run(call: bytes) -> Dict[str, Any]:
    """Run a task's body.

    Args:
        call: pickles of the function, of its arguments by place and by name, and what is known of the task run.

    Returns:
        Kind and bytes of the outcome, as an item's result has them; what was printed; host and seconds.
    """
    began, start = time.monotonic(), os.lseek(1, 0, os.SEEK_CUR)
    os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
    try:
        function, arguments, about = pickle.loads(call)
        function = _loaded(function)
        args, kwargs = pickling.load(io.BytesIO(arguments), [])
        with _known_to_prefect(about), _limited(about["timeout_seconds"]):
            outcome = item_outcomes.of_value(execution.completed(function(*args, **kwargs)))
    except BaseException as error:
        outcome = item_outcomes.of_error(error)
    script_end.flush_buffers()
    took = time.monotonic() - began
    return {
        "kind": outcome.kind, "data": outcome.data, "output": _output_since(start), "host": socket.gethostname(),
        "seconds": took,
    }  # fmt: skip


@functools.lru_cache(maxsize=KEPT)
def _loaded(function: bytes) -> Any:
    return pickling.load(io.BytesIO(function), [])[0]


def _output_since(start: int) -> str:
    """What was printed to the worker's log since an offset."""
    end = os.lseek(1, 0, os.SEEK_CUR)
    if end <= start:
        return ""
    with open("/proc/self/fd/1", "rb") as log:
        log.seek(max(start, end - LONGEST_OUTPUT))
        return log.read(end - log.tell()).decode("utf-8", "replace")


@contextlib.contextmanager
def _limited(seconds: Optional[float]) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds."""
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise TimeoutError("the task took longer than its timeout_seconds={}".format(seconds))

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _known_to_prefect(about: Dict[str, Any]) -> Iterator[None]:
    """Have Prefect, where the body uses it, know the task run without a server."""
    if "prefect" not in sys.modules and not about["uses_prefect"]:
        yield
        return
    context = importlib.import_module("prefect.context").TaskRunContext.__var__
    task_type = importlib.import_module("prefect.tasks").Task
    task_type.__call__ = lambda task, *args, **kwargs: task.fn(*args, **kwargs)  # as inside any run: in place
    logger = logging.getLogger("prefect.task_runs")
    logger.handlers, logger.propagate = [_Printer()], False
    logger.setLevel(about["level"])
    task_run, task = (SimpleNamespace(**about[name]) for name in ("task_run", "task"))
    known = SimpleNamespace(task_run=task_run, task=task, parameters={}, log_prints=False, persist_result=False)
    token = context.set(known)
    try:
        yield
    finally:
        context.reset(token)


class _Printer(logging.Handler):
    """Prints what is logged, for home."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record in a line for each line that it has."""
        for line in self.format(record).split("\n"):
            sys.stdout.write("{}{}{}{}\n".format(MARK, record.levelno, MARK, line))
