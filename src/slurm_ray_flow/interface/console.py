"""Prefect's own lines on the console, which would drown the launch's."""

from __future__ import annotations

import contextlib
import contextvars
import logging
from collections.abc import Iterator

from prefect.logging.handlers import PrefectConsoleHandler

from slurm_ray_flow.core.trace import tracing

_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("slurm_ray_flow_quiet", default=False)


_THEIRS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


class _LaunchFilter(logging.Filter):
    """Keeps the records of a launch's flow and tasks from the console. Prefect's API gets them all the same."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (_quiet.get() and record.name.startswith(_THEIRS))


_filter = _LaunchFilter()


@contextlib.contextmanager
def quiet_console() -> Iterator[None]:
    """Show the launch's own progress alone, unless SRF_LOG=debug."""
    if tracing():
        yield
        return
    for handler in logging.getLogger().handlers:
        if isinstance(handler, PrefectConsoleHandler) and _filter not in handler.filters:
            handler.addFilter(_filter)
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)
