"""How a launch tells what it does. What shows it (a terminal, nothing) is the caller's choice."""

from __future__ import annotations

import contextvars
from typing import Protocol


class Reporter(Protocol):
    """Receives what happens in a launch, in order."""

    def begin(self, run_id: str, function: str, cluster: str, url: str) -> None:
        """A run has its id, and a page in the UI."""

    def step(self, name: str) -> None:
        """A step starts; the one before it has ended."""

    def fail(self) -> None:
        """The step under way has failed, and the launch goes on with the next all the same."""

    def say(self, text: str) -> None:
        """How far this step is; what it says last is kept."""

    def warn(self, text: str) -> None:
        """Something in this step that the user may have to see to."""

    def log(self, data: bytes) -> None:
        """The function wrote this; lines may be cut anywhere."""

    def again(self, error: BaseException, text: str) -> None:
        """The step failed, and all begin anew."""

    def end(self, error: BaseException | None) -> None:
        """The run is over."""


class SilentReporter:
    """A reporter that shows nothing."""

    def begin(self, run_id: str, function: str, cluster: str, url: str) -> None: ...
    def step(self, name: str) -> None: ...
    def fail(self) -> None: ...
    def say(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def log(self, data: bytes) -> None: ...
    def again(self, error: BaseException, text: str) -> None: ...
    def end(self, error: BaseException | None) -> None: ...


_current: contextvars.ContextVar[Reporter | None] = contextvars.ContextVar("slurm_ray_flow_reporter", default=None)


def reporter() -> Reporter:
    """The reporter of the launch that is under way in this context; a silent one where there is none."""
    return _current.get() or SilentReporter()


def use_reporter(shown: Reporter) -> contextvars.Token[Reporter | None]:
    """Make `shown` this context's reporter; hand the token to `stop_reporter` at the end."""
    return _current.set(shown)


def stop_reporter(token: contextvars.Token[Reporter | None]) -> None:
    """Undo `use_reporter`."""
    _current.reset(token)
