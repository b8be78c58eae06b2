"""A warning before the end: the head tells a function that its call will be ended, so that it can save its results.

The head writes the reason and the deadline to a file and sends SIGUSR1; the call's process then reads the file and
calls the handlers. A cancelled run gets SIGTERM at once: that calls the handlers, too, if SIGUSR1 has not.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, TypeVar

SIGNAL = signal.SIGUSR1
REASONS = ("time_limit", "preempted", "cancelled")

Handler = Callable[["EndWarning"], Any]
H = TypeVar("H", bound=Handler)


class EndWarning(NamedTuple):
    """The argument of a handler.

    Attributes:
        reason: why the function will be ended: "time_limit", "preempted" or "cancelled".
        seconds_left: how many seconds it has from the handler's call on.
    """

    reason: str
    seconds_left: float


class _Listener:
    """The state of warnings in this process: the file, the handlers, and the last warning that was handled."""

    def __init__(self) -> None:
        self.path = ""
        self.handlers: List[Handler] = []
        self.ray_waits = 0
        self.pending_error: Optional[BaseException] = None
        self._last_reason = ""
        self._previous_handlers: Dict[int, Any] = {}

    def install(self, number: int) -> None:
        """Handle a signal; its previous handler is called afterwards."""
        with contextlib.suppress(ValueError):  # only the main thread may
            previous = signal.getsignal(number)
            if previous != self.on_signal:
                self._previous_handlers[number] = previous
                signal.signal(number, self.on_signal)
        # Without handlers, the signal need not interrupt a system call in a C library.
        signal.siginterrupt(number, bool(self.handlers))

    def on_signal(self, number: int, frame: Any) -> None:
        """Call the handlers, then the signal's previous handler.

        Inside of Ray's waits only a KeyboardInterrupt may be raised; any other exception breaks Ray's state.
        """
        try:
            self.call_handlers()
        except Exception as error:
            if not self.ray_waits or not str(getattr(frame, "f_globals", {}).get("__name__")).startswith("ray."):
                raise
            self.pending_error = error
            raise KeyboardInterrupt from None
        previous = self._previous_handlers.get(number)
        if callable(previous):
            previous(number, frame)
        elif number == signal.SIGTERM and previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def call_handlers(self) -> None:
        """Call the handlers, once for each warning; the function gets the exceptions that they raise."""
        warning = _read(self.path) if self.path and self.handlers else None
        if warning is None or warning["reason"] == self._last_reason:
            return
        self._last_reason = warning["reason"]
        for handler in self.handlers:
            handler(EndWarning(warning["reason"], max(0.0, warning["until"] - time.monotonic())))


_listener = _Listener()


def listen(path: str = "") -> None:
    """In a driver: handle SIGUSR1, which would end the process; call the handlers once the warning's path is known."""
    _listener.path = path
    _listener.install(SIGNAL)


def on_warning(handler: H) -> H:
    """Have `handler(warning)` called when the run is about to be ended, so that it can save results and clean up.

    It is called in the function's main thread, between two steps of it, as Python's signal handlers are; what it raises
    is raised in the function. Outside of a run, and in Ray's tasks, nobody calls it.

    Args:
        handler: gets an `EndWarning`: why the function will be ended, and how many seconds it has.

    Returns:
        The handler, so that this may be used as a decorator.
    """
    _listener.handlers.append(handler)
    if _listener.path:
        _listener.install(SIGNAL)
        _listener.install(signal.SIGTERM)
        _listener.call_handlers()  # the warning may have come before there was a handler
    return handler


def letting_through(wait: Callable[..., Any]) -> Callable[..., Any]:
    """A waiting function of Ray's that raises what a handler has raised."""

    @functools.wraps(wait)
    def waiting_for_ray(*args: Any, **named: Any) -> Any:
        _listener.ray_waits += 1
        try:
            return wait(*args, **named)
        except KeyboardInterrupt:
            error, _listener.pending_error = _listener.pending_error, None
            if error is None:
                raise
        finally:
            _listener.ray_waits -= 1
        raise error

    return waiting_for_ray


def write(path: str, reason: str, seconds_left: float) -> None:
    """In the head: write a warning for the call's process."""
    with contextlib.suppress(OSError):  # a full disk: the function ends without a warning
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump({"reason": reason, "until": time.monotonic() + seconds_left}, file)
        os.replace(path + ".new", path)


def pending(path: str) -> Optional[EndWarning]:
    """The warning at this path; None without one."""
    warning = _read(path)
    return EndWarning(warning["reason"], warning["until"] - time.monotonic()) if warning else None


def _read(path: str) -> Optional[Dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            warning: Dict[str, Any] = json.load(file)
        return warning
    return None
