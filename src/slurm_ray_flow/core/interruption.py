"""What may end a wait for a cluster, wherever in the program that wait happens."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Callable, Iterator

LOOK_SECONDS = 0.1

_check: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar("slurm_ray_flow_check", default=None)


@contextlib.contextmanager
def interruptible(check: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `check` is called each second or so of a wait; what it raises ends the wait."""
    token = _check.set(check)
    try:
        yield
    finally:
        _check.reset(token)


def interrupted() -> None:
    """Called by whoever waits. Raises what ends the wait, if there is something."""
    check = _check.get()
    if check is not None:
        check()


def pause(seconds: float) -> None:
    """Wait so long, unless something ends the wait."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        interrupted()
        time.sleep(min(left, LOOK_SECONDS))
