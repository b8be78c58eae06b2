"""Interruption of waits for a cluster, wherever in the program the wait happens."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator

LOOK_SECONDS = 0.1

_check: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar("slurm_ray_flow_check", default=None)


@contextlib.contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """Make each wait inside the block call `check` again and again; an exception of `check` ends the wait."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def interrupted() -> None:
    """Call the `check` of `interruptible`, whose exception ends the present wait. Each loop that waits calls this."""
    check = _check.get()
    if check is not None:
        check()


def pause(seconds: float) -> None:
    """Wait for some seconds, unless an interruption ends the wait."""
    end = time.monotonic() + seconds
    while (remaining := end - time.monotonic()) > 0:
        interrupted()
        time.sleep(min(remaining, LOOK_SECONDS))
