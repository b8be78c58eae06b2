"""A launch's turn on a server that several people share: a slot in Prefect, first come, first served.

The lock on the server decides; this queue comes before it, and is visible in Prefect and in the terminal.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from prefect.runtime import flow_run

from slurm_ray_flow.blocks import concurrency_limit
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.concurrency_limit import HeldSlot, Slot
from slurm_ray_flow.blocks.lock_mirror import mirror
from slurm_ray_flow.blocks.server.api import Api, status_of
from slurm_ray_flow.blocks.server.client import api_in_use
from slurm_ray_flow.core.errors import Cancelled, ServerError, SlurmRayFlowError
from slurm_ray_flow.core.launch_events import StepStarted, Waiting, Warned, publish
from slurm_ray_flow.core.lock import (
    Lock,
    LockQueue,
    limit_name,
    place_in_line,
    queued_text,
    waiting_state,
    waiting_text,
)
from slurm_ray_flow.core.run import Event, Liveness, find_event
from slurm_ray_flow.tasks.cancellation import Heartbeat, stop_if_cancelled
from slurm_ray_flow.tasks.flow_state import name_state, read_state, runs_in_state
from slurm_ray_flow.tasks.run import Run, where

SHOW_SECONDS = 5.0
"""The fewest seconds between two texts of a waiting run: a new text is a new state in Prefect."""


class WaitReport:
    """The report of a run's wait: an event of the launch, and the name of the flow run's state.

    Args:
        run: the run that waits.
        state: the name of the flow run's state during the wait.
        over: the text when the wait is over.

    Attributes:
        text: the last text; "" while the run does not wait.
    """

    def __init__(self, run: Run, state: str, over: str) -> None:
        self.text, self._run, self._state, self._over = "", run, state, over
        self._shown_at = float("-inf")

    def show(self, text: str | None) -> None:
        """Report why the run waits: "" when it waits no more, None where nothing new is known."""
        too_soon = text and self.text and time.monotonic() - self._shown_at < SHOW_SECONDS
        if text is None or text == self.text or too_soon:
            return
        self.text, self._shown_at = text, time.monotonic()
        publish(Waiting(text or self._over, over=not text))
        api = api_in_use()
        if api is not None and flow_run.get_id() is not None:
            with contextlib.suppress(ServerError):
                name_state(api, self._run.record.flow_run_id, self._state if text else "Running", text)


def reason_to_wait(cluster: Cluster, events: list[Event], liveness: Liveness | None) -> str | None:
    """The reason that a head waits: "" where it does not wait, None where nothing new is known."""
    if waiting := find_event(events, "waiting"):
        return "" if find_event(events, "lock_held") else queued_text(cluster.label, waiting, time.time())
    if find_event(events, "allocated"):
        return ""
    return liveness.waiting or None if liveness else None


FRONT_SECONDS, BEHIND_SECONDS = 0.5, 1.0
"""Seconds between two looks at the queue, for its first launch and for the others."""
MIRROR_FRONT_SECONDS, MIRROR_BEHIND_SECONDS = 2.0, 15.0
"""Seconds between two questions to the server about its holders, for the first launch and for the others."""
TOUCH_SECONDS = 3600.0
"""Seconds between two touches of the run's files on the server, which keep a clean-up from removing them."""
SERVER_FAULT = 500
NO_ANSWER_SECONDS = 30.0
"""Seconds without an answer of Prefect after which a launch goes to the server's own queue without a slot."""


@contextlib.contextmanager
def turn(run: Run, cluster: Cluster, needs: Sequence[str] = ()) -> Iterator[dict[str, Any] | None]:
    """Wait for a slot of the cluster, and give it back when the run has ended.

    Args:
        run: the launch's run.
        cluster: the cluster.
        needs: files below the cluster's root whose times say that the snapshot or environment is in use.

    Yields:
        The description of the lock for the run's head; None for a cluster without a lock.

    Raises:
        Cancelled: somebody cancelled the flow run during the wait.
    """
    lock = cluster.lock
    if lock is None:
        yield None
        return
    key, slot = _take_slot(run, cluster, lock, [place for place in needs if place])
    try:
        yield _lock_description(run, cluster, lock, key)
    finally:
        if slot:
            slot.leave(run.over)


@contextlib.contextmanager
def resumed_turn(run: Run) -> Iterator[None]:
    """Hold the slot that an earlier process of this run took, if any, and give it back at the end."""
    api = api_in_use()
    noted = next((one for one in concurrency_limit.noted() if one.run_id == run.record.run_id), None)
    slot = Slot(api, replace(noted, left=False)) if api is not None and noted and noted.url == api.url else None
    try:
        yield
    finally:
        if slot:
            slot.leave(run.over)


def _lock_description(run: Run, cluster: Cluster, lock: Lock, key: str) -> dict[str, Any]:
    name = run.record.function.rpartition(":")[2]
    owner = {"run": run.record.run_id, "server": key, "name": name, "since": time.time()}
    return {"path": lock.path, "slots": lock.slots, "gpus": lock.gpus, "label": cluster.label, "owner": owner}


def _take_slot(run: Run, cluster: Cluster, lock: Lock, needs: Sequence[str]) -> tuple[str, Slot | None]:
    """The limit's key, and a slot of it; neither without Prefect, where the lock alone decides."""
    api = api_in_use()
    if api is None:
        return "", None
    try:
        return _PrefectQueue(run, cluster, lock, api, needs).wait()
    except ServerError as error:
        what = f"Prefect's server does not answer ({error.what})"
        publish(Warned(f"{what}; the run goes to {cluster.label} without its queue"))
        return "", None


class _PrefectQueue:
    """The queue in Prefect for one server, seen from one launch in it."""

    def __init__(self, run: Run, cluster: Cluster, lock: Lock, api: Api, needs: Sequence[str]) -> None:
        self._needs, self._touched_at = needs, time.monotonic()
        self._run, self._cluster, self._lock, self._api = run, cluster, lock, api
        self._name, self._state = limit_name(cluster.label), waiting_state(cluster.label)
        self._key = ""
        self._queue: LockQueue | None = None
        self._report, self._mirrored_at = WaitReport(run, self._state, f"our turn on {cluster.label}"), float("-inf")

    def wait(self) -> tuple[str, Slot | None]:
        """Wait for a slot."""
        ahead = 0
        try:
            self._mirror(0.0)
            ahead = len(runs_in_state(self._api, self._state))
            if not ahead and (slot := self._take()):
                return self._key, slot
        except ServerError as error:  # a server that is busy or starting: this launch queues all the same
            if (status_of(error) or SERVER_FAULT) < SERVER_FAULT:
                raise
        publish(StepStarted("turn"))
        slot = self._wait_in_queue(ahead)
        self._run.note(waiting="")
        self._report.show("")
        return self._key, slot

    def _wait_in_queue(self, ahead: int) -> Slot | None:
        heartbeat, answered = Heartbeat(), time.monotonic()
        self._show(ahead)
        try:
            while True:
                stop_if_cancelled()
                if heartbeat.cancelled_in_prefect():
                    raise self._cancelled_error()
                with contextlib.suppress(ServerError):
                    ahead = self._update_place()
                    answered = time.monotonic()
                    if ahead == 0 and (slot := self._take()):
                        return slot
                if time.monotonic() - answered > NO_ANSWER_SECONDS:
                    return None
                time.sleep(BEHIND_SECONDS if ahead else FRONT_SECONDS)
        finally:
            heartbeat.close()

    def _update_place(self) -> int:
        """Read, show and give the number of launches ahead of this one; refresh the mirror."""
        ahead = place_in_line(runs_in_state(self._api, self._state), self._run.record.flow_run_id)
        if ahead is None:
            ahead = self._reenter()
        self._mirror(MIRROR_BEHIND_SECONDS if ahead else MIRROR_FRONT_SECONDS)
        self._touch_files()
        self._show(ahead)
        return ahead

    def _reenter(self) -> int:
        """Enter the queue again after another process changed the flow run's state; a cancel ends the wait instead."""
        if read_state(self._api, self._run.record.flow_run_id) in {"CANCELLING", "CANCELLED"}:
            raise self._cancelled_error()
        self._report.text = ""
        return 1

    def _take(self) -> Slot | None:
        lease = concurrency_limit.take(self._api, self._name, self._run.record.flow_run_id)
        if lease is None:
            return None
        return Slot(self._api, HeldSlot(self._run.record.run_id, lease, self._name, self._api.url))

    def _mirror(self, seconds: float) -> None:
        if time.monotonic() - self._mirrored_at < seconds:
            return
        from slurm_ray_flow.tasks.cluster_report import report  # needs SSH, which other launches do without

        self._mirrored_at = time.monotonic()
        self._queue = report(self._cluster, "lock").lock
        self._key = mirror(self._api, self._cluster.label, self._lock.slots, self._queue).key

    def _touch_files(self) -> None:
        if time.monotonic() - self._touched_at > TOUCH_SECONDS:
            self._touched_at = time.monotonic()
            with contextlib.suppress(SlurmRayFlowError):
                root = str(self._cluster.root_folder)
                self._cluster.ask("clean_up.touch", root=root, places=list(self._needs))

    def _show(self, ahead: int) -> None:
        """Show the wait in the record and as an event of the launch."""
        text = waiting_text(self._cluster.label, self._queue, ahead, time.time())
        self._report.show(text)
        if self._run.record.waiting != self._report.text:
            self._run.note(waiting=self._report.text)

    def _cancelled_error(self) -> Cancelled:
        return Cancelled("the run was cancelled in Prefect while it waited for its turn", where=where(self._run.record))
