"""Waits for something no longer than one can wait, whatever it is at when the time is over."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any, TypeVar, cast

from slurm_ray_flow.core.progress import Reporter, SilentReporter, reporter, use_reporter

T = TypeVar("T")
SLOW_SECONDS = 4.0


def within(seconds: float, do: Callable[[], T], late: Callable[[], BaseException]) -> T:
    """What `do` gives, in a thread that neither this one nor the end of the process waits for any longer.

    A lost connection can hold its user back at any point (a look-up, a log-in, a lock that another thread has), so what
    must come to an end is not done where the end is wanted. Ctrl-C gets through at once.

    Args:
        seconds: how long to wait.
        do: what to do; it goes on after that, and may still succeed.
        late: the exception for when it took too long.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()
    shown = _Hushable(reporter())
    context.run(use_reporter, cast(Reporter, shown))

    def work() -> None:
        try:
            future.set_result(context.run(do))
        except BaseException as error:  # it belongs to whoever waits
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="srf-patience").start()
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        if future.done():
            raise
    shown.hush()
    raise late()


@contextlib.contextmanager
def told_if_slow(text: str) -> Iterator[None]:
    """What is done in the block may take long without a word of its own: then this is said of it."""
    timer = threading.Timer(SLOW_SECONDS, reporter().say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Hushable:
    """A reporter that passes on what it is told as long as somebody waits."""

    def __init__(self, shown: Reporter) -> None:
        self._shown = shown

    def hush(self) -> None:
        self._shown = SilentReporter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)
