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
"""How often a waiting run says something new, at most: a new text is a new state in Prefect."""


class WaitReport:
    """The report of a run's wait: an event of the launch, and the name of the flow run's state.

    Args:
        run: the run that waits.
        state: the name of the state meanwhile.
        over: what is reported when the wait is over.

    Attributes:
        text: what was reported last; "" while it does not wait.
    """

    def __init__(self, run: Run, state: str, over: str) -> None:
        self.text, self._run, self._state, self._over = "", run, state, over
        self._shown = float("-inf")

    def show(self, text: str | None) -> None:
        """Report why the run waits, "" when it waits no more; None where nothing new is known."""
        too_soon = text and self.text and time.monotonic() - self._shown < SHOW_SECONDS
        if text is None or text == self.text or too_soon:
            return
        self.text, self._shown = text, time.monotonic()
        publish(Waiting(text or self._over, over=not text))
        api = api_in_use()
        if api is not None and flow_run.get_id() is not None:
            with contextlib.suppress(ServerError):
                name_state(api, self._run.record.flow_run_id, self._state if text else "Running", text)


def reason_to_wait(cluster: Cluster, events: list[Event], life: Liveness | None) -> str | None:
    """What a head waits for: "" for nothing, None where nothing new is known."""
    if waiting := find_event(events, "waiting"):
        return "" if find_event(events, "lock_held") else queued_text(cluster.label, waiting, time.time())
    if find_event(events, "allocated"):
        return ""
    return life.waiting or None if life else None


FRONT_SECONDS, BEHIND_SECONDS = 0.5, 1.0
"""Seconds between two looks at the queue, for its first launch and for the others."""
MIRROR_FRONT_SECONDS, MIRROR_BEHIND_SECONDS = 2.0, 15.0
"""Seconds between two questions to the server about its holders, for the first launch and for the others."""
KEEP_SECONDS = 3600.0
"""Seconds between two touches of the run's files on the server, which keep a clean-up from removing them."""
SERVER_FAULT = 500
WITHOUT_SECONDS = 30.0
"""Seconds without an answer of Prefect after which a launch goes to the server's own queue without a slot."""


@contextlib.contextmanager
def turn(run: Run, cluster: Cluster, needs: Sequence[str] = ()) -> Iterator[dict[str, Any] | None]:
    """Wait for a slot of the cluster, and give it back when the run has ended.

    Args:
        run: the launch's run.
        cluster: where.
        needs: files below the root there whose times say that somebody uses what they belong to.

    Yields:
        What the run's head must know of the lock; None for a cluster that has none.

    Raises:
        Cancelled: somebody cancelled the flow run while it waited.
    """
    lock = cluster.lock
    if lock is None:
        yield None
        return
    key, slot = _take_slot(run, cluster, lock, [place for place in needs if place])
    try:
        yield _description(run, cluster, lock, key)
    finally:
        if slot:
            slot.leave(run.over)


@contextlib.contextmanager
def kept_turn(run: Run) -> Iterator[None]:
    """Hold the slot that an earlier process of this run took, if any, and give it back at the end."""
    api = api_in_use()
    held = next((one for one in concurrency_limit.noted() if one.run_id == run.record.run_id), None)
    slot = Slot(api, replace(held, left=False)) if api is not None and held and held.url == api.url else None
    try:
        yield
    finally:
        if slot:
            slot.leave(run.over)


def _description(run: Run, cluster: Cluster, lock: Lock, key: str) -> dict[str, Any]:
    name = run.record.function.rpartition(":")[2]
    owner = {"run": run.record.run_id, "server": key, "name": name, "since": time.time()}
    return {"path": lock.path, "slots": lock.slots, "gpus": lock.gpus, "label": cluster.label, "owner": owner}


def _take_slot(run: Run, cluster: Cluster, lock: Lock, needs: Sequence[str]) -> tuple[str, Slot | None]:
    """The limit's key, and a slot of it; without Prefect neither, and the lock alone decides."""
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
        self._needs, self._kept = needs, time.monotonic()
        self._run, self._cluster, self._lock, self._api = run, cluster, lock, api
        self._name, self._state = limit_name(cluster.label), waiting_state(cluster.label)
        self._key = ""
        self._queue: LockQueue | None = None
        self._report, self._mirrored = WaitReport(run, self._state, f"our turn on {cluster.label}"), float("-inf")

    def wait(self) -> tuple[str, Slot | None]:
        """Wait for a slot."""
        before = 0
        try:
            self._mirror(0.0)
            before = len(runs_in_state(self._api, self._state))
            if not before and (slot := self._take()):
                return self._key, slot
        except ServerError as error:  # busy, or just being started: no reason to pass the others by
            if (status_of(error) or SERVER_FAULT) < SERVER_FAULT:
                raise
        publish(StepStarted("turn"))
        slot = self._wait_in_queue(before)
        self._run.note(waiting="")
        self._report.show("")
        return self._key, slot

    def _wait_in_queue(self, before: int) -> Slot | None:
        heartbeat, answered = Heartbeat(), time.monotonic()
        self._show(before)
        try:
            while True:
                stop_if_cancelled()
                if heartbeat.cancel_asked():
                    raise self._cancelled()
                with contextlib.suppress(ServerError):
                    before = self._look()
                    answered = time.monotonic()
                    if before == 0 and (slot := self._take()):
                        return slot
                if time.monotonic() - answered > WITHOUT_SECONDS:
                    return None
                time.sleep(BEHIND_SECONDS if before else FRONT_SECONDS)
        finally:
            heartbeat.close()

    def _look(self) -> int:
        """The number of launches before this one; shows it, and refreshes the mirror."""
        before = place_in_line(runs_in_state(self._api, self._state), self._run.record.flow_run_id)
        if before is None:
            before = self._enter_again()
        self._mirror(MIRROR_BEHIND_SECONDS if before else MIRROR_FRONT_SECONDS)
        self._keep_files()
        self._show(before)
        return before

    def _enter_again(self) -> int:
        """Enter the queue again after another process changed the flow run's state; a cancel ends the wait instead."""
        if read_state(self._api, self._run.record.flow_run_id) in {"CANCELLING", "CANCELLED"}:
            raise self._cancelled()
        self._report.text = ""
        return 1

    def _take(self) -> Slot | None:
        lease = concurrency_limit.take(self._api, self._name, self._run.record.flow_run_id)
        if lease is None:
            return None
        return Slot(self._api, HeldSlot(self._run.record.run_id, lease, self._name, self._api.url))

    def _mirror(self, seconds: float) -> None:
        if time.monotonic() - self._mirrored < seconds:
            return
        from slurm_ray_flow.tasks.cluster_report import report  # needs SSH, which other launches do without

        self._mirrored = time.monotonic()
        self._queue = report(self._cluster, "lock").lock
        self._key = mirror(self._api, self._cluster.label, self._lock.slots, self._queue).key

    def _keep_files(self) -> None:
        if time.monotonic() - self._kept > KEEP_SECONDS:
            self._kept = time.monotonic()
            with contextlib.suppress(SlurmRayFlowError):
                root = str(self._cluster.root_folder)
                self._cluster.ask("clean_up.touch", root=root, places=list(self._needs))

    def _show(self, before: int) -> None:
        """Show the wait in the record, and where the launch's events are shown."""
        text = waiting_text(self._cluster.label, self._queue, before, time.time())
        self._report.show(text)
        if self._run.record.waiting != self._report.text:
            self._run.note(waiting=self._report.text)

    def _cancelled(self) -> Cancelled:
        return Cancelled("the run was cancelled in Prefect while it waited for its turn", where=where(self._run.record))
