"""The reporter of a launch: its caller chooses what shows the progress, a terminal or nothing."""

from __future__ import annotations

import contextvars


class Reporter:
    """The receiver of a launch's progress, in order. Each kind says what it shows."""

    def begin(self, run_id: str, function: str, cluster: str, url: str) -> None:
        """A run begins; it has an id, and a page in the UI."""

    def step(self, name: str) -> None:
        """A step starts; the one before it has ended."""

    def fail(self) -> None:
        """The step under way has failed, and the launch goes on with the next all the same."""

    def say(self, text: str) -> None:
        """Show a text about the present step; the last one stays."""

    def warn(self, text: str) -> None:
        """Show a warning about the present step."""

    def log(self, data: bytes) -> None:
        """Show output of the function; lines may be cut anywhere."""

    def again(self, error: BaseException, text: str) -> None:
        """The step has failed, and the next try begins with the first step."""

    def end(self, error: BaseException | None) -> None:
        """The run is over."""


class SilentReporter(Reporter):
    """A reporter that shows nothing."""


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
