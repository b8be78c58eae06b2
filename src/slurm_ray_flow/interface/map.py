"""Many calls of one function, each a run of its own: the handles of a map, and the wait for the next end."""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, cast, overload

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.map_record import find_map, ranges_text
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.run import RunState, is_from_the_cluster, shorten
from slurm_ray_flow.interface.attached_calls import (
    LONGEST_WAIT,
    SHORTEST_WAIT,
    AttachedCall,
    cancel_map,
    ensure_begun,
    handle_of_call,
)
from slurm_ray_flow.interface.body import bind
from slurm_ray_flow.interface.calls import Arguments, MapCalls, MapItem
from slurm_ray_flow.interface.handle import Handle, Producer
from slurm_ray_flow.interface.session import DecoratedFunction

R = TypeVar("R")


class Handles(Producer, Sequence[Handle[R]], Generic[R]):
    """The calls of a map, in the order of the values.

    Attributes:
        map_id: names the map, for `Handles.attach`.
    """

    def __init__(self, map_id: str, handles: Sequence[Handle[R]], calls: MapCalls | None = None) -> None:
        self.map_id = map_id
        self._handles, self._calls = handles, calls

    @classmethod
    def attach(cls, map_id: str = "") -> Handles[Any]:
        """The calls of a map that any process on this machine has started.

        Args:
            map_id: its id, or the start of it; without one, the newest map.

        Raises:
            UnknownRunError: there is no such map, or several.
        """
        record = find_map(map_id)
        if record.left() and record.is_kept:
            ensure_begun(record)
        return Handles(record.map_id, [handle_of_call(record, index) for index in range(len(record.values))])

    def results(self, timeout: float | None = None, return_exceptions: bool = False) -> list[R]:
        """Wait until all calls have ended; gives their values in order. Ctrl-C while it waits cancels all of them.

        Args:
            timeout: seconds to wait at most; the runs go on after it.
            return_exceptions: have a failed call's exception in the place of its value, as `asyncio.gather` does.

        Raises:
            TimeoutError: not all runs have ended by then.
            BaseException: the exception of the first call in the line that failed; the others have ended all the same.
        """
        __tracebackhide__ = True
        try:
            return self._results(timeout, return_exceptions)
        except BaseException as error:
            shorten(error)
            raise error

    def _results(self, timeout: float | None, return_exceptions: bool) -> list[R]:
        for _ in as_completed(self._handles, timeout):
            pass
        outcomes = [_value_and_error(handle) for handle in self._handles]
        failed = [index for index, (_, error) in enumerate(outcomes) if error is not None]
        if failed and not return_exceptions:
            first = outcomes[failed[0]][1]
            assert first is not None
            raise _with_note(first, _advice(failed, len(self._handles)))
        return [cast(R, value if error is None else error) for value, error in outcomes]

    @property
    def not_begun(self) -> list[int]:
        """The indexes of the calls that have not begun: they wait, or the process that begins them is gone."""
        return [index for index, handle in enumerate(self._handles) if _has_not_begun(handle)]

    def done(self) -> bool:
        """Whether all calls have ended."""
        return all(handle.done() for handle in self._handles)

    def cancel(self) -> int:
        """Begin no more calls, and end those that are under way. Does nothing to those that have ended.

        Returns:
            How many were under way and now are gone.

        Raises:
            RunError: it could not be verified that they are gone.
        """
        if self._calls is not None:
            return self._calls.cancel()
        return cancel_map(self.map_id)

    @overload
    def __getitem__(self, index: int) -> Handle[R]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Handle[R]]: ...

    def __getitem__(self, index: int | slice) -> Handle[R] | Sequence[Handle[R]]:
        return self._handles[index]

    def __len__(self) -> int:
        return len(self._handles)

    def __reduce__(self) -> tuple[Any, ...]:
        return Handles.attach, (self.map_id,)

    def __repr__(self) -> str:
        return f"<{len(self)} handles of map {self.map_id[:8]}>"


def _has_not_begun(handle: Handle[Any]) -> bool:
    """Whether a call has no run, or one that was still in the queue of a shared server when its process was killed."""
    if isinstance(handle, AttachedCall) and not handle.has_begun():
        return handle.status() in (RunState.WAITING, RunState.LOST)
    if handle.run_id:
        return store.find_record(handle.run_id).unsent and handle.status() is RunState.LOST
    return handle.status() in (RunState.WAITING, RunState.LOST) and not handle.run_id


def start_map(
    flow: DecoratedFunction, iterables: Sequence[Iterable[Any]], shared: dict[str, Any], max_parallel: int | None
) -> Handles[Any]:
    """Begin the calls of a map.

    Raises:
        OptionError: `max_parallel` is no number of calls, or there are no iterables.
        TypeError: the function does not take such arguments.
    """
    if not iterables:
        raise OptionError("map needs values to go over", advice="write f.map([1, 2, 3])")
    if any(isinstance(values, Producer) and not isinstance(values, Sequence) for values in iterables):
        what = "map goes over values, and not over what one run or campaign will have as its value"
        raise OptionError(what, advice="write f.map(handle.result()), or f.map(campaign.results())")
    is_count = isinstance(max_parallel, int) and not isinstance(max_parallel, bool) and max_parallel > 0
    if max_parallel is not None and not is_count:
        what = f"max_parallel={max_parallel!r} must be a whole number of 1 or more, or None for all at once"
        raise OptionError(what, advice="write max_parallel=8")
    arguments: list[Arguments] = [(values, shared) for values in zip(*iterables, strict=False)]
    if arguments:
        bind(flow.fn, arguments[0][0], shared)
    calls = MapCalls(flow, arguments, max_parallel or max(len(arguments), 1))
    calls.start()
    return Handles(calls.map_id, calls.items, calls)


def as_completed(handles: Iterable[Handle[R]], timeout: float | None = None) -> Iterator[Handle[R]]:
    """Give each handle when its run has ended, whichever comes first; how it ended, its `result()` says.

    Ctrl-C while it waits cancels the calls of a map.

    Args:
        handles: of a map, or any others.
        timeout: seconds for all of them; the runs go on after it.

    Raises:
        TimeoutError: not all runs have ended by then.
    """
    waiting = list(dict.fromkeys(handles))
    ended: queue.SimpleQueue[Handle[R]] = queue.SimpleQueue()
    polled = [handle for handle in waiting if not _queues_its_end(handle, ended)]
    deadline = None if timeout is None else time.monotonic() + timeout
    remaining = len(waiting)
    pause = SHORTEST_WAIT
    while remaining:
        with _interruptible_wait(waiting):
            ended_handle = _next_ended(ended, polled, pause, deadline)
        if ended_handle is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{remaining} of {len(waiting)} runs have not ended within {timeout} s; they go on")
            pause = min(pause * 1.5, LONGEST_WAIT)
            continue
        remaining -= 1
        yield ended_handle


def _queues_its_end(handle: Handle[R], ended: queue.SimpleQueue[Handle[R]]) -> bool:
    """Have a run put its handle into a queue when it ends; False for a run that another process launched."""
    if handle._future is None:
        return False
    handle._future.add_done_callback(lambda _: ended.put(handle))
    return True


def _next_ended(
    ended: queue.SimpleQueue[Handle[R]], polled: list[Handle[R]], pause: float, deadline: float | None
) -> Handle[R] | None:
    """The next run that has ended; None after some time without one."""
    for handle in polled:
        if handle.done():
            polled.remove(handle)
            return handle
    seconds_left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
    bounds = [bound for bound in (seconds_left, pause if polled else None) if bound is not None]
    with contextlib.suppress(queue.Empty):
        return ended.get(timeout=min(bounds) if bounds else None)
    return None


@contextlib.contextmanager
def _interruptible_wait(handles: Sequence[Handle[Any]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for calls in {handle.calls for handle in handles if isinstance(handle, MapItem)}:
            stack.enter_context(calls.watched())
        yield


def _value_and_error(handle: Handle[Any]) -> tuple[Any, BaseException | None]:
    try:
        return handle.result(), None
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and not is_from_the_cluster(error):
            raise
        return None, error


def _advice(failed: Sequence[int], count: int) -> str:
    which = ranges_text(failed)
    return f"{len(failed)} of {count} calls failed: {which}; results(return_exceptions=True) gives all others"


def _with_note(error: BaseException, note: str) -> BaseException:
    notes = list(getattr(error, "__notes__", []))
    if note not in notes:
        error.__notes__ = [*notes, note]  # type: ignore[attr-defined]
    return error
