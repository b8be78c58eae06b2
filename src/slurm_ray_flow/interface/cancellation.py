"""The end of a process that has launched a run.

Prefect sends logs and events in the background, and delays the end of a process until all of them are sent. A server
that is gone would delay it for a minute, and Prefect would write lines about unsent logs into the user's terminal.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import sys
import threading
import time
import weakref
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from prefect._internal.concurrency import services
from prefect.settings import get_current_settings

from slurm_ray_flow.core.run import is_from_the_cluster
from slurm_ray_flow.interface.notebook import ipython
from slurm_ray_flow.tasks.cancellation import stop_background

SEND_SECONDS = 10.0
"""Seconds for sending the last logs and events to a server that answers."""
GIVE_UP_SECONDS = 0.5
"""Seconds for a server that does not answer."""

_bounded: weakref.WeakSet[Any] = weakref.WeakSet()
_lock = threading.Lock()


def bound_process_end() -> None:
    """Bound the time that Prefect's background services may delay the end of this process.

    The interpreter calls the function that was registered last first, so call this after a service has started; without
    a new service it does nothing.
    """
    with _lock:
        fresh = [service for service in list(services._active_services) if service._started and service not in _bounded]
        if not fresh:
            return
        _bounded.update(fresh)
        with contextlib.suppress(RuntimeError):  # the process is at its end already
            threading._register_atexit(_finish)  # type: ignore[attr-defined]


def _finish() -> None:
    stop_background(GIVE_UP_SECONDS)
    running = [service for service in list(_bounded) if service._started and not service._done_event.is_set()]
    deadline = time.monotonic() + (SEND_SECONDS if server_listens() else GIVE_UP_SECONDS)
    for service in running:
        service._logger.setLevel(logging.ERROR)  # no line about unsent logs
        service._stop(at_exit=True)
    while time.monotonic() < deadline and not all(service._done_event.is_set() for service in running):
        time.sleep(0.01)
    for service in running:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            service._loop.call_soon_threadsafe(service._done_event.set)


class Interruptible(Protocol):
    """Work that ends with this process."""

    def on_interrupt(self) -> None:
        """End the work: an unhandled Ctrl-C ends the process, or the cell of a notebook."""

    def on_process_end(self) -> str:
        """End the work with the process; gives a message for the user."""
        ...


_interruptible: weakref.WeakSet[Any] = weakref.WeakSet()


def end_with_process(work: Interruptible) -> None:
    """Register work that ends with this process, or when its cell of a notebook is interrupted."""
    _end_with_cell(work)
    with _lock:
        _hook_process_end()
        _interruptible.add(work)


def _end_with_cell(work: Interruptible) -> None:
    shell = ipython()
    if shell is None:
        return

    def on_cell_end(result: Any) -> None:
        shell.events.unregister("post_run_cell", on_cell_end)
        error = result.error_in_exec
        if isinstance(error, KeyboardInterrupt) and not is_from_the_cluster(error):
            work.on_interrupt()

    shell.events.register("post_run_cell", on_cell_end)


@functools.cache
def _hook_process_end() -> None:
    """Have Ctrl-C in a script, and the end of the process, end the work; in an interpreter Ctrl-C ends a line."""
    previous_hook = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt) and not is_from_the_cluster(error) and not hasattr(sys, "ps1"):
            for work in list(_interruptible):
                work.on_interrupt()
        previous_hook(kind, error, traceback)

    sys.excepthook = hook
    with contextlib.suppress(RuntimeError):  # the process is at its end already
        threading._register_atexit(_end_work)  # type: ignore[attr-defined]


def _end_work() -> None:
    for work in list(_interruptible):
        if text := work.on_process_end():
            sys.stderr.write(f"{text}\n")


def server_listens() -> bool:
    """Whether Prefect's server accepts connections."""
    parts = urlsplit(get_current_settings().api.url or "")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=GIVE_UP_SECONDS):
            return True
    except OSError:
        return False
