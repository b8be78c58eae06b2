"""One call of a map: a handle of a run that may not have begun yet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, TypeVar

from slurm_ray_flow.core.errors import Cancelled, UnknownRunError
from slurm_ray_flow.core.run import RunRecord, RunState
from slurm_ray_flow.interface.handle import Handle

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster
    from slurm_ray_flow.interface.calls import Calls

R = TypeVar("R")

CANCEL_SECONDS = 60.0
"""How long a call that is cancelled may take to end: its launch waits for its cluster for a while."""


class Item(Handle[R]):
    """A call of a map that this process begins.

    Attributes:
        index: its place among the calls.
        run_id: the run's id; "" as long as it has not begun.
        future: gets its value or its exception.
        stop: tells its launch to end the run.
    """

    def __init__(self, calls: Calls, index: int) -> None:
        self.future: Future[R] = Future()
        super().__init__("", self.future)
        self.index = index
        self.stop = threading.Event()
        self.calls = calls
        self._has_begun = threading.Event()

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"call {self.index} of {self.calls.name}"

    def begin(self, run_id: str) -> None:
        """It is a run now."""
        self.run_id = run_id
        self._has_begun.set()

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """It has ended."""
        if error is None:
            self.future.set_result(value)
        else:
            self.future.set_exception(error)
        self._has_begun.set()

    def result(self, timeout: float | None = None) -> R:
        """Wait for the value. Ctrl-C while it waits cancels all calls of the map.

        Args:
            timeout: seconds to wait at most; the run goes on after it.

        Raises:
            TimeoutError: it has not ended by then.
            RunError: it ended without a value.
            BaseException: the function's own exception.
        """
        __tracebackhide__ = True
        if self.future.done():
            return super().result()
        with self.calls.watched():
            return super().result(timeout)

    def done(self) -> bool:
        """Whether it has ended."""
        return self.future.done()

    def status(self) -> RunState:
        """Where it is on its way; waiting, if it has not begun."""
        if self.run_id:
            return super().status()
        if not self.future.done():
            return RunState.WAITING
        return RunState.CANCELLED if isinstance(self.future.exception(), Cancelled) else RunState.FAILED

    def logs(self, follow: bool = False) -> Iterator[str]:
        """The lines that the function wrote.

        Args:
            follow: wait until it begins, and go on until it ends.
        """
        if follow:
            self._has_begun.wait()
        return super().logs(follow) if self.run_id else iter(())

    def _found(self) -> tuple[RunRecord, Cluster]:
        if not self.run_id:
            raise UnknownRunError(f"{self.name} has not begun", advice="wait for it")
        return super()._found()

    def cancel(self) -> bool:
        """End it, or do not begin it. The other calls go on.

        Returns:
            Whether it was to run and now does not.

        Raises:
            RunError: it could not be verified that it is gone.
        """
        if self.calls.forget(self):
            return True
        if self.future.done():
            return False
        self.stop.set()
        return self.is_gone(CANCEL_SECONDS) and isinstance(self.future.exception(), Cancelled)

    def is_gone(self, seconds: float) -> bool:
        """Wait until its launch has ended; whether nothing of it runs any more."""
        try:
            self.future.exception(seconds)
        except FutureTimeoutError:
            return False
        return not self.run_id or super().done() or super().cancel()

    def _not_yet(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self.name} has not ended within {timeout} s; it goes on")

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.calls.map_id, self.index, self.run_id)

    def __repr__(self) -> str:
        return f"Handle({self.run_id!r})" if self.run_id else f"<{self.name}, not begun>"


def _again(map_id: str, index: int, run_id: str) -> Handle[Any]:
    """The handle in another process."""
    from slurm_ray_flow.interface.many import Handles

    return Handle(run_id) if run_id else Handles.attach(map_id)[index]
