"""The end of a process that has launched a run.

Prefect sends logs and events in the background, and holds a process back at its end until all of them are sent. A
server that is gone would so cost a minute, and what is left to do is told in lines that nobody asked for.
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

PATIENCE = 10.0
"""Seconds for sending the last logs and events, if the server answers."""
IMPATIENCE = 0.5

_bounded: weakref.WeakSet[Any] = weakref.WeakSet()
_guard = threading.Lock()


def bound_the_end() -> None:
    """Let this process end soon, whatever Prefect's background services still have to do.

    The interpreter calls what was registered last first, so this must come after the services have started; it does
    nothing where no new one has.
    """
    with _guard:
        new = [service for service in list(services._active_services) if service._started and service not in _bounded]
        if not new:
            return
        _bounded.update(new)
        with contextlib.suppress(RuntimeError):  # the process is at its end already
            threading._register_atexit(_finish)  # type: ignore[attr-defined]


def _finish() -> None:
    stop_background(IMPATIENCE)
    running = [service for service in list(_bounded) if service._started and not service._done_event.is_set()]
    deadline = time.monotonic() + (PATIENCE if server_listens() else IMPATIENCE)
    for service in running:
        service._logger.setLevel(logging.ERROR)  # no word about what is still to be sent
        service._stop(at_exit=True)
    while time.monotonic() < deadline and not all(service._done_event.is_set() for service in running):
        time.sleep(0.01)
    for service in running:
        with contextlib.suppress(RuntimeError):  # its loop has ended
            service._loop.call_soon_threadsafe(service._done_event.set)


class Interruptible(Protocol):
    """Work that ends with this process."""

    def interrupted(self) -> None:
        """End the work: an unhandled Ctrl-C ends the process, or the cell of a notebook."""

    def process_ends(self) -> str:
        """End the work with the process; gives a message for the user."""
        ...


_interruptible: weakref.WeakSet[Any] = weakref.WeakSet()


def end_with_process(work: Interruptible) -> None:
    """Have work ended with this process, or when its cell of a notebook is interrupted."""
    _end_with_cell(work)
    with _guard:
        _hook_process_end()
        _interruptible.add(work)


def _end_with_cell(work: Interruptible) -> None:
    shell = ipython()
    if shell is None:
        return

    def ended(result: Any) -> None:
        shell.events.unregister("post_run_cell", ended)
        error = result.error_in_exec
        if isinstance(error, KeyboardInterrupt) and not is_from_the_cluster(error):
            work.interrupted()

    shell.events.register("post_run_cell", ended)


@functools.cache
def _hook_process_end() -> None:
    """Have Ctrl-C in a script, and the end of the process, end the work; in an interpreter, Ctrl-C ends a line only."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt) and not is_from_the_cluster(error) and not hasattr(sys, "ps1"):
            for work in list(_interruptible):
                work.interrupted()
        before(kind, error, traceback)

    sys.excepthook = hook
    with contextlib.suppress(RuntimeError):  # the process is at its end already
        threading._register_atexit(_end_work)  # type: ignore[attr-defined]


def _end_work() -> None:
    for work in list(_interruptible):
        if text := work.process_ends():
            sys.stderr.write(f"{text}\n")


def server_listens() -> bool:
    parts = urlsplit(get_current_settings().api.url or "")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 443), timeout=IMPATIENCE):
            return True
    except OSError:
        return False
