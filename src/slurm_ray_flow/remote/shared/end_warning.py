"""A word before the end: the head says that it is about to end a call, and the function may act on it.

The head writes down why and until when, and sends SIGUSR1; the call's process reads that and calls the handlers. A
cancelled run gets SIGTERM at once, so handlers are called on that one, too, if they have not been.
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
    """What a handler gets to know.

    Attributes:
        reason: why the function will be ended: "time_limit", "preempted" or "cancelled".
        seconds_left: how many seconds it has from the handler's call on.
    """

    reason: str
    seconds_left: float


class _Listener:
    """What this process knows of warnings: where they are written, who wants them, which one was heard last."""

    def __init__(self) -> None:
        self.path = ""
        self.handlers: List[Handler] = []
        self.waits = 0
        self.raised: Optional[BaseException] = None
        self._heard = ""
        self._before: Dict[int, Any] = {}

    def install(self, number: int) -> None:
        """Have a signal come here; what it did before is done afterwards."""
        with contextlib.suppress(ValueError):  # only the main thread may
            before = signal.getsignal(number)
            if before != self.on_signal:
                self._before[number] = before
                signal.signal(number, self.on_signal)
        # A C library that waits need not know of a signal that nobody listens to.
        signal.siginterrupt(number, bool(self.handlers))

    def on_signal(self, number: int, frame: Any) -> None:
        """Call the handlers, then do what the signal did before.

        Ray lets a KeyboardInterrupt end its waits; of all else that a handler raises there it makes a mess, much later.
        """
        try:
            self.tell()
        except Exception as error:
            if not self.waits or not str(getattr(frame, "f_globals", {}).get("__name__")).startswith("ray."):
                raise
            self.raised = error
            raise KeyboardInterrupt from None
        before = self._before.get(number)
        if callable(before):
            before(number, frame)
        elif number == signal.SIGTERM and before == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def tell(self) -> None:
        """Call the handlers, once for each warning; what they raise goes through the function."""
        warning = _read(self.path) if self.path and self.handlers else None
        if warning is None or warning["reason"] == self._heard:
            return
        self._heard = warning["reason"]
        for handler in self.handlers:
            handler(EndWarning(warning["reason"], max(0.0, warning["until"] - time.monotonic())))


_listener = _Listener()


def listen(path: str = "") -> None:
    """In a driver: let SIGUSR1 do no harm; from the moment the path of the warning is known, tell the handlers."""
    _listener.path = path
    _listener.install(SIGNAL)


def on_warning(handler: H) -> H:
    """Have `handler(warning)` called when the run is about to be ended: to save what there is, and to leave in order.

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
        _listener.tell()  # it may have come before anybody listened
    return handler


def letting_through(wait: Callable[..., Any]) -> Callable[..., Any]:
    """A function of Ray that waits, through which comes what a handler raises."""

    @functools.wraps(wait)
    def waiting(*args: Any, **named: Any) -> Any:
        _listener.waits += 1
        try:
            return wait(*args, **named)
        except KeyboardInterrupt:
            raised, _listener.raised = _listener.raised, None
            if raised is None:
                raise
        finally:
            _listener.waits -= 1
        raise raised

    return waiting


def write(path: str, reason: str, seconds_left: float) -> None:
    """In the head: note a warning for the call's process."""
    with contextlib.suppress(OSError):  # a full disk: the function ends without a warning
        with open(path + ".new", "w", encoding="ascii") as file:
            json.dump({"reason": reason, "until": time.monotonic() + seconds_left}, file)
        os.replace(path + ".new", path)


def _read(path: str) -> Optional[Dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            found: Dict[str, Any] = json.load(file)
        return found
    return None
