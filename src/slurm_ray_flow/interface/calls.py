"""The calls of a map: begun in order, at most `max_parallel` at a time, each a run of its own."""

from __future__ import annotations

import collections
import contextlib
import functools
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any, TypeVar

from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.map_record import (
    CANCELLED,
    DONE,
    FAILED,
    arguments_text,
    change_time,
    find_map,
    note_begun,
    note_cancelled,
    note_ended,
    note_failed,
    ranges_text,
    record_map,
)
from slurm_ray_flow.core import launch_events as events
from slurm_ray_flow.core.errors import (
    Cancelled,
    InputFailed,
    PayloadError,
    RunError,
    SlurmRayFlowError,
    UnknownRunError,
)
from slurm_ray_flow.core.run import RunRecord, RunState, is_from_the_cluster
from slurm_ray_flow.interface.attached_calls import unpickled_call
from slurm_ray_flow.interface.cancellation import bound_process_end, end_with_process
from slurm_ray_flow.interface.handle import Handle
from slurm_ray_flow.interface.kept_map import KeptMap
from slurm_ray_flow.interface.map_progress import MapProgress
from slurm_ray_flow.interface.session import DecoratedFunction, Launching, blocking_call, label
from slurm_ray_flow.tasks.cancellation import in_background

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster


R = TypeVar("R")
LOOK_SECONDS = 1.0
"""Seconds between two looks at what other processes have noted of a map."""
CANCEL_SECONDS = 60.0
"""Seconds that a cancelled call may take to end, since its launch waits for its cluster for a while."""


class MapItem(Handle[R]):
    """One call of a map that this process begins.

    Attributes:
        index: the place of the call among the calls.
        run_id: the run's id; "" before the call has begun.
        future: gets the call's value or exception.
        stop: tells the call's launch to end the run.
        step: the present step of the call's launch; "" before the first.
    """

    def __init__(self, calls: MapCalls, index: int) -> None:
        self.future: Future[R] = Future()
        super().__init__("", self.future)
        self.index = index
        self.stop = threading.Event()
        self.step = ""
        self.calls = calls
        self._has_begun = threading.Event()

    @property
    def name(self) -> str:
        """The call's name in messages."""
        return f"call {self.index} of {self.calls.name}"

    def begin(self, run_id: str) -> None:
        """Note that the call is a run now."""
        self.run_id = run_id
        self._has_begun.set()

    def is_sent(self) -> bool:
        """Whether the cluster may have the call, which goes on then when this process ends."""
        record = store.known_record(self.run_id) if self.run_id else None
        return record is not None and not record.unsent

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """Note that the call has ended."""
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
            TimeoutError: the call has not ended by then.
            RunError: the call ended without a value.
            BaseException: the function's own exception.
        """
        __tracebackhide__ = True
        if self.future.done():
            return super().result()
        with self.calls.watched():
            return super().result(timeout)

    def done(self) -> bool:
        """Whether the call has ended."""
        return self.future.done()

    def status(self) -> RunState:
        """The state of the call's run; waiting before it has begun."""
        if self.run_id:
            return super().status()
        if not self.future.done():
            return RunState.WAITING
        return RunState.CANCELLED if isinstance(self.future.exception(), Cancelled) else RunState.FAILED

    def logs(self, follow: bool = False) -> Iterator[str]:
        """The lines that the function wrote.

        Args:
            follow: wait until the call begins, and go on until it ends.
        """
        if follow:
            self._has_begun.wait()
        return super().logs(follow) if self.run_id else iter(())

    def _record_and_cluster(self) -> tuple[RunRecord, Cluster]:
        if not self.run_id:
            raise UnknownRunError(f"{self.name} has not begun", advice="wait for it")
        return super()._record_and_cluster()

    def cancel(self) -> bool:
        """End the call, or do not begin it. The other calls go on.

        Returns:
            Whether the call was waiting or running, and now is gone.

        Raises:
            RunError: it could not be verified that the call is gone.
        """
        if self.calls.cancel_unbegun(self):
            return True
        if self.future.done():
            return False
        self.stop.set()
        return self.is_gone(CANCEL_SECONDS) and isinstance(self.future.exception(), Cancelled)

    def is_gone(self, seconds: float) -> bool:
        """Wait until the launch has ended; gives whether nothing of the call runs any more."""
        try:
            self.future.exception(seconds)
        except FutureTimeoutError:
            return False
        return not self.run_id or super().done() or super().cancel()

    def _timeout_error(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"{self.name} has not ended within {timeout} s; it goes on")

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickled_call, (self.calls.map_id, self.index, self.run_id)

    def __repr__(self) -> str:
        return f"Handle({self.run_id!r})" if self.run_id else f"<{self.name}, not begun>"


STARTING_AT_ONCE = 8
"""The most launches before their start on the cluster at a time: more would only wait for Prefect's server."""
SHARED_STEPS = {"turn", "start_ray"}
"""The steps by which the files and packages that all calls share are on the cluster."""

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class MapCalls:
    """A map: its calls, and the thread that begins them.

    The first call goes ahead alone until what all of them share (files, environment) is on the cluster; where that
    fails, it fails for all of them.

    Args:
        flow: the decorated function.
        arguments: positional and keyword arguments of each call.
        max_parallel: how many calls may be under way at a time.
        map_id: the map's id; "" for a new map.
    """

    def __init__(
        self, flow: DecoratedFunction, arguments: Sequence[Arguments], max_parallel: int, map_id: str = ""
    ) -> None:
        self.map_id = map_id or uuid.uuid4().hex
        self.flow, self.name = flow, flow.name
        self._arguments: list[Arguments | None] = list(arguments)
        self.items: list[MapItem[Any]] = [MapItem(self, index) for index in range(len(arguments))]
        self._texts = [arguments_text(positional) for positional, _ in arguments]
        self._max_parallel = max_parallel
        self._change = threading.Condition()
        self._under_way: set[MapItem[Any]] = set()
        self._starting: set[MapItem[Any]] = set()
        self._shared_parts_ready = self._stopped = False
        self._end_counts = collections.Counter[str]()
        self._looked_at = 0.0
        self._where = label(flow.options.cluster)
        self.progress = MapProgress(self.name, self._where, len(arguments), max_parallel, self.map_id)
        self.kept = KeptMap(self.map_id, flow, arguments, max_parallel, self.progress.tell)

    def start(self) -> None:
        """Begin the first call, and each further one when another has ended."""
        record_map(self.map_id, self.name, self._where, self._texts)
        if self.items:
            self.kept.start()
        end_with_process(self)
        self.begin()

    def begin(self) -> None:
        """Begin the calls, in a thread."""
        threading.Thread(target=self._begin_all, name=f"srf-map-{self.name}", daemon=True).start()

    def _begin_all(self) -> None:
        for item in self.items:
            if not self._await_turn(item):
                continue
            self._show_counts()
            try:
                threading.Thread(target=self._run, args=(item,), name=f"srf-{self.name}", daemon=True).start()
            except RuntimeError:  # the interpreter is ending
                return
        while not self._wait_for(lambda: all(item.future.done() for item in self.items)):
            self._look_at_record()
        self.kept.drop()

    def _await_turn(self, item: MapItem[Any]) -> bool:
        """Wait until a call may begin; False where it need not, or must not."""
        while not self._wait_for(lambda: self._stopped or item.future.done() or self._may_begin_another()):
            self._look_at_record()
        with self._change:
            if self._stopped or item.future.done() or item in self._under_way:
                return False
            self._under_way.add(item)
            self._starting.add(item)
            return True

    def _wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition, and at most until the next look at the record."""
        with self._change:
            return self._change.wait_for(condition, LOOK_SECONDS)

    def _look_at_record(self) -> None:
        """Do what another process has noted: cancel a call, or all of them."""
        if (changed := change_time(self.map_id)) == self._looked_at:
            return
        self._looked_at = changed
        with contextlib.suppress(UnknownRunError):
            record = find_map(self.map_id)
            for index in record.cancelled:
                self.cancel_unbegun(self.items[index])
            if record.is_cancelled:
                self._end_all()

    def _may_begin_another(self) -> bool:
        at_once = STARTING_AT_ONCE if self._shared_parts_ready else 1
        return len(self._under_way) < self._max_parallel and len(self._starting) < at_once

    def _run(self, item: MapItem[Any]) -> None:
        """Run one call from its beginning to its end, in a thread of its own."""
        map_prefix = self.map_id[:8]
        subfolder = f"outputs/{map_prefix}/{item.index}"
        current = Launching(functools.partial(self._receive, item), tags=(f"map-{map_prefix}",), subfolder=subfolder)
        try:
            with in_background(item.stop):
                value = blocking_call(self.flow, current, *self._arguments_of(item.index, current))()
        except BaseException as error:  # any exception belongs to the caller of `result`
            self._note_failure(item, error)
        else:
            self._note_end(item, value=value)
        bound_process_end()

    def _arguments_of(self, index: int, current: Launching) -> Arguments:  # noqa: ARG002 - others say more of the launch
        """The arguments of a call that begins."""
        arguments = self._arguments[index] or ((), {})
        self._arguments[index] = None
        return arguments

    def _note_failure(self, item: MapItem[Any], error: BaseException) -> None:
        if not item.run_id:
            note_failed(self.map_id, item.index, error)
        concerns_all = isinstance(error, SlurmRayFlowError) and not isinstance(
            error, PayloadError | Cancelled | InputFailed
        )
        if concerns_all and not self._shared_parts_ready:
            self.stop(error)
        self._note_end(item, error=error)

    def _note_end(self, item: MapItem[Any], value: Any = None, error: BaseException | None = None) -> None:
        if item.run_id:
            with contextlib.suppress(OSError):
                note_ended(self.map_id, item.index, _how(error))
        with self._change:
            self._under_way.discard(item)
            self._starting.discard(item)
            self._shared_parts_ready |= error is None
            self._settle(item, value, error)
        if error is not None and not isinstance(error, Cancelled):
            self.progress.show_failure(item.index, self._texts[item.index], error)
        self._show_counts()

    def _settle(self, item: MapItem[Any], value: Any = None, error: BaseException | None = None) -> None:
        self._end_counts[_how(error)] += 1
        item.settle(value, error)
        self._change.notify_all()

    def _receive(self, item: MapItem[Any], event: events.LaunchEvent) -> None:
        """Follow one launch of the map."""
        match event:
            case events.RunBegan():
                note_begun(self.map_id, item.index, event.run_id)
                item.begin(event.run_id)
            case events.StepStarted():
                self._step_started(item, event.name)
            case events.Note() | events.Waiting() if item.step in SHARED_STEPS:
                self.progress.note(event.text)
            case events.Note() | events.Waiting() if not self._shared_parts_ready:
                self.progress.note(f"{item.step}: {event.text}")
            case events.Warned():
                self.progress.warn(event.text)
            case events.Detachable():
                self._note_started(item)
            case events.FilesReady():
                self.kept.note_prepared(item.index, event.prepared)
            case events.TryFailed():
                self.progress.tell(f"call {item.index}: {event.text}")

    def _step_started(self, item: MapItem[Any], name: str) -> None:
        """Show the step of the first call; later, the reason that calls wait on the cluster."""
        item.step = name
        if name in SHARED_STEPS:
            with self._change:
                self._shared_parts_ready = True
                self._change.notify_all()
        if name in {
            "turn",
            events.AWAIT_VALUE,
        }:  # the call waits, in the queue of a server or for other runs, perhaps for long
            self._note_started(item)
        if name in SHARED_STEPS or name == "execute_call":
            self.progress.note("")
        elif not self._shared_parts_ready:
            self.progress.note(name)

    def _note_started(self, item: MapItem[Any]) -> None:
        """Note that a call has started: its launch asks Prefect's server seldom from now on."""
        with self._change:
            self._starting.discard(item)
            self._change.notify_all()

    def stop(self, error: BaseException) -> None:
        """Begin no more calls: those that have not begun fail with `error`."""
        with self._change:
            self._stopped = True
            for item in self._unbegun_items():
                note_failed(self.map_id, item.index, error)
                self._settle(item, error=error)
            self._change.notify_all()
        self._show_counts()

    def cancel_unbegun(self, item: MapItem[Any]) -> bool:
        """Cancel a call that has not begun; False where it has."""
        with self._change:
            if item.future.done() or item in self._under_way:
                return False
            error = Cancelled(f"{item.name} was cancelled before it had begun")
            note_failed(self.map_id, item.index, error)
            self._settle(item, error=error)
        self._show_counts()
        return True

    def cancel(self) -> int:
        """Begin no more calls, end the running ones, wait until they are gone; gives how many of them were cancelled.

        Raises:
            RunError: it could not be verified that they are gone.
        """
        note_cancelled(self.map_id)
        running = self._end_all()
        deadline = time.monotonic() + CANCEL_SECONDS
        gone = [item.is_gone(max(deadline - time.monotonic(), 0.0)) for item in running]
        if not all(gone):
            doubtful = ranges_text([item.index for item, is_gone in zip(running, gone, strict=True) if not is_gone])
            raise RunError(f"it is not sure that these calls have ended: {doubtful}", advice="`srf runs` lists them")
        return sum(isinstance(item.future.exception(), Cancelled) for item in running)

    def _end_all(self) -> list[MapItem[Any]]:
        """Begin no more calls, and have the running ones end; gives these."""
        self.stop(Cancelled(f"the map of {self.name} was cancelled before this call had begun"))
        with self._change:
            running = list(self._under_way)
        for item in running:
            item.stop.set()
        return running

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Show the progress of the calls inside the block, and have Ctrl-C cancel all of them."""
        with self.progress.displayed():
            try:
                yield
            except KeyboardInterrupt as error:
                if is_from_the_cluster(error):  # the function raised it
                    raise
                self.progress.tell("interrupted: cancels what is under way, and begins no more")
                self.cancel()
                raise

    def on_interrupt(self) -> None:
        """Cancel the calls: Ctrl-C ends the process while no caller waits for them."""
        with contextlib.suppress(SlurmRayFlowError):
            self.cancel()

    def on_process_end(self) -> str:
        """End the map with the process: begun calls go on, and the engine begins the others; a message says so."""
        with self._change:
            self._stopped = True
            waiting = [item.index for item in self.items if not item.future.done() and not item.is_sent()]
            self._change.notify_all()
        if not waiting:
            if all(item.future.done() for item in self.items):
                self.kept.drop()
            return ""
        left = f"{self.name}: {len(waiting)} of {len(self.items)} calls were not begun: {ranges_text(waiting)}. "
        found = f"Handles.attach({self.map_id[:8]!r}) finds them."
        if problem := self.kept.hand_over():
            return f"{left}They never will be: {problem}. Those that were go on; {found}"
        return f"{left}The grid's engine begins them; {found} `srf grid cancel {self.map_id[:8]}` ends them."

    def _unbegun_items(self) -> list[MapItem[Any]]:
        return [item for item in self.items if not item.future.done() and item not in self._under_way]

    def _show_counts(self) -> None:
        with self._change:
            self.progress.changed(len(self._under_way), self._end_counts)


def _how(error: BaseException | None) -> str:
    """How a call has ended."""
    return DONE if error is None else CANCELLED if isinstance(error, Cancelled) else FAILED
