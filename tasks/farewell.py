"""Launches in the background: how they are cancelled from this process, and what becomes of them when it ends.

A process that ends while launches still wait for their runs: their threads stop where they are, and harm nothing. A
thread that went on while the interpreter ends would see Prefect fail under it, and take that for the end of its run.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator

from slurm_ray_flow.core.errors import Cancelled

_mine: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar(
    "slurm_ray_flow_background", default=None
)
_under_way: set[threading.Event] = set()
_leaving = threading.Event()


@contextlib.contextmanager
def in_background(cancelled: threading.Event | None = None) -> Iterator[None]:
    """What happens in the block need not be waited for when the process ends.

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
    """Called wherever a launch waits: never comes back when the process is about to end.

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
