"""What may end a wait for a cluster, wherever in the program that wait happens."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

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
