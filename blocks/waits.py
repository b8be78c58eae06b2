"""Waits with a bound, and messages about long waits."""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TypeVar

from slurm_ray_flow.core.launch_events import Note, publisher, stream_to

T = TypeVar("T")
SLOW_SECONDS = 4.0


def within(seconds: float, do: Callable[[], T], late: Callable[[], BaseException]) -> T:
    """The result of `do`, which runs in a thread, so that a lost connection can't block the caller, nor Ctrl-C.

    After the wait the thread publishes nothing any more.

    Args:
        seconds: the most seconds to wait.
        do: the function; it goes on after the wait, and may still succeed.
        late: makes the exception for a wait that is over.
    """
    future: Future[T] = Future()
    publish_here, context, is_late = publisher(), contextvars.copy_context(), threading.Event()
    context.run(stream_to, lambda event: is_late.is_set() or publish_here(event))

    def work() -> None:
        try:
            future.set_result(context.run(do))
        except BaseException as error:  # the waiting thread raises it
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="srf-patience").start()
    try:
        return future.result(seconds)
    except FutureTimeoutError:
        if future.done():
            raise
    is_late.set()
    raise late()


@contextlib.contextmanager
def message_if_slow(text: str) -> Iterator[None]:
    """Show a text if the work in the block takes long."""
    timer = threading.Timer(SLOW_SECONDS, publisher(), (Note(text),))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
