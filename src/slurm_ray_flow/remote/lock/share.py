"""The share of one run in a server under a lock: its slots, its GPUs and its confinement."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, List, Optional

from slurm_ray_flow.remote.lock import confinement, lock
from slurm_ray_flow.remote.lock.turn import Grant, Turn
from slurm_ray_flow.remote.lock.watchdog import Watchdog
from slurm_ray_flow.remote.shared.events import RunFiles

QUEUE_POLL_SECONDS = 0.5
FILES_CHECK_SECONDS = 60.0


class LockShare:
    """The share of one run, which the keeper makes and the inner head enters.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        turn: the run's turn, with its grant.
        clean_up: called when all processes of the run have ended.
    """

    def __init__(self, run: RunFiles, spec: Dict[str, Any], turn: Turn, clean_up: Callable[[], None]) -> None:
        assert turn.grant is not None
        self._run, self._turn, self._grant, self._clean_up = run, turn, turn.grant, clean_up
        self._spec = turn.grant.applied(spec)
        self._next_poll, self._is_awaited, self._is_idle = 0.0, False, False
        self._next_check = time.monotonic() + FILES_CHECK_SECONDS
        self._lost_files: List[str] = []
        store = int(self._spec.get("object_store_memory") or 0)
        cpus, memory = self._grant.cpus, self._grant.memory
        self._group = confinement.make(run.id, memory, cpus, bool(spec.get("ray")), store)
        turn.files.divide()
        self.watchdog = Watchdog(run.id, lambda: turn.files.join(lock.WATCHDOG), self._end, self._group)

    def enter(self) -> Dict[str, Any]:
        """Lock the inner head's part, and confine the run; returns the spec.json with the run's resources."""
        self._turn.files.join(lock.INNER)
        os.environ.update(self._grant.variables())
        affinity = confinement.set_affinity(self._grant.cpus)
        if self._group and not self._group.join():
            self._group = None
        self._run.record("lock_held", **self._described(affinity))
        return self._spec

    def limit(self, driver: int) -> None:
        """Limit a driver's data, if there is no control group for its memory."""
        if self._limits_data:
            confinement.limit_data(driver, self._grant.memory or 0)

    def kills(self) -> Optional[int]:
        """The number of this run's processes that the kernel has killed for want of memory; None if unknown."""
        return self._group.kills() if self._group else None

    def keep(self) -> None:
        """Touch the lock's files from time to time, and record those that another run has after a removal."""
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + FILES_CHECK_SECONDS
        lost_files = self._turn.keep()
        if lost_files != self._lost_files:
            self._lost_files = lost_files
            self._run.record("lock_lost", files=lost_files)

    def is_wanted(self) -> bool:
        """Whether another run waits in the queue."""
        if time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + QUEUE_POLL_SECONDS
            self._is_awaited = self._turn.queue.has_waiting_runs()
        return self._is_awaited

    def show_idle(self, idle: bool) -> None:
        """Show other runs whether this one only waits for another call."""
        if idle != self._is_idle:
            self._is_idle = idle
            self._turn.queue.show_idle(idle)

    @property
    def _limits_data(self) -> bool:
        free = not self._spec.get("ray") and not self._grant.gpus  # CUDA and Ray reserve memory that they never use
        return free and self._group is None and self._grant.memory is not None

    def _described(self, affinity: bool) -> Dict[str, Any]:
        grant: Grant = self._grant
        limits = confinement.enforced(self._group, affinity, grant.memory, self._limits_data)
        granted = {"slots": len(grant.slots), "cpus": grant.cpus, "gpus": grant.gpus, "memory": grant.memory}
        return {**granted, "enforced": limits}

    def _end(self) -> None:
        """End the share; the watchdog calls this when all processes of the run have ended."""
        if self._group:
            self._group.remove()
        self._clean_up()
        self._turn.queue.leave()
