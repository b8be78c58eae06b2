"""The cancellation of a launch, by Prefect or by its own process, and the heartbeat that it sends to Prefect."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import Iterator
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.runtime import flow_run

from slurm_ray_flow.blocks.server.automation import emit_heartbeat
from slurm_ray_flow.core.errors import Cancelled
from slurm_ray_flow.core.interruption import interruptible
from slurm_ray_flow.core.launch_events import Warned, publish

_cancelled_event: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar(
    "slurm_ray_flow_background", default=None
)
_under_way: set[threading.Event] = set()
_process_ends = threading.Event()


@contextlib.contextmanager
def in_background(cancelled: threading.Event | None = None) -> Iterator[None]:
    """Mark the block's launch as one that the end of the process does not wait for.

    Args:
        cancelled: the event that has the launch in the block end its run and itself.
    """
    event = cancelled or threading.Event()
    token = _cancelled_event.set(event)
    _under_way.add(event)
    try:
        yield
    finally:
        _under_way.discard(event)
        _cancelled_event.reset(token)


def is_in_background() -> bool:
    """Whether this is a launch that `in_background` has marked."""
    return _cancelled_event.get() is not None


def stop_if_cancelled() -> None:
    """Stop this thread for good when the process is about to end; each wait of a launch calls this function.

    Raises:
        Cancelled: somebody in this process has cancelled the launch.
    """
    event = _cancelled_event.get()
    if event is None:
        return
    if event.is_set():
        raise Cancelled("the run was cancelled by the program that launched it")
    if not _process_ends.is_set():
        return
    _under_way.discard(event)
    threading.Event().wait()


def stop_background(patience: float) -> None:
    """Stop all launches in the background, when the process ends."""
    _process_ends.set()
    deadline = time.monotonic() + patience
    while _under_way and time.monotonic() < deadline:
        time.sleep(0.01)


HEARTBEAT_SECONDS = 30.0
ASK_SECONDS = 5.0


class Heartbeat:
    """A heartbeat every 30 s, and the question every 5 s whether the flow run is cancelled; silence ends no run."""

    def __init__(self) -> None:
        self._id = str(flow_run.get_id() or "")
        self._last_beat, self._last_question = float("-inf"), time.monotonic()
        self._stack = contextlib.ExitStack()
        self._client: SyncPrefectClient | None = None
        self._silent = False

    def cancelled_in_prefect(self) -> bool:
        """Whether somebody cancelled the flow run in Prefect; most calls return False without a question."""
        now = time.monotonic()
        if not self._id:
            return False
        if now - self._last_beat > HEARTBEAT_SECONDS:
            self._last_beat = now
            emit_heartbeat()
        if now - self._last_question < ASK_SECONDS:
            return False
        self._last_question = now
        return self._read_cancellation()

    def close(self) -> None:
        """Give the connection back."""
        self._stack.close()

    def _read_cancellation(self) -> bool:
        try:
            if self._client is None:
                self._client = self._stack.enter_context(get_client(sync_client=True))
            state = self._client.read_flow_run(UUID(self._id)).state
        except Exception as error:  # the run goes on after any exception of the client
            if not self._silent:
                self._silent = True
                what = f"Prefect's server does not answer ({type(error).__name__})"
                publish(Warned(f"{what}; the run goes on without it"))
            return False
        self._silent = False
        return state is not None and state.type.value in {"CANCELLING", "CANCELLED"}


@contextlib.contextmanager
def cancellable(where: str) -> Iterator[None]:
    """Have a cancel in Prefect end each wait for the cluster inside the block, also for an unreachable one.

    Raises:
        Cancelled: somebody cancelled the flow run.
    """
    heartbeat = Heartbeat()

    def check() -> None:
        stop_if_cancelled()
        if heartbeat.cancelled_in_prefect():
            raise Cancelled("the run was cancelled in Prefect", where=where)

    try:
        with interruptible(check):
            yield
    finally:
        heartbeat.close()
