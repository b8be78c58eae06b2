"""The share of one run in a server under a lock: its slots, its GPUs and its confinement."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Dict, List, Optional

from slurm_ray_flow.remote.lock import confinement, lock
from slurm_ray_flow.remote.lock.turn import Grant, Turn
from slurm_ray_flow.remote.lock.watchdog import Watchdog
from slurm_ray_flow.remote.shared.events import RunFiles

LOOK_FOR_WAITERS_EVERY = 0.5
LOOK_FOR_FILES_EVERY = 60.0


class LockShare:
    """The share of one run, made in the keeper and entered in the inner head.

    Args:
        run: the allocation's run.
        spec: its spec.json.
        turn: what was taken.
        last: what else is left to do when no process of the run is left.
    """

    def __init__(self, run: RunFiles, spec: Dict[str, Any], turn: Turn, last: Callable[[], None]) -> None:
        assert turn.grant is not None
        self._run, self._turn, self._grant, self._last = run, turn, turn.grant, last
        self._spec = turn.grant.applied(spec)
        self._next_look, self._wanted, self._idles = 0.0, False, False
        self._next_keep = time.monotonic() + LOOK_FOR_FILES_EVERY
        self._lost: List[str] = []
        store = int(self._spec.get("object_store_memory") or 0)
        cpus, memory = self._grant.cpus, self._grant.memory
        self._group = confinement.make(run.id, memory, cpus, bool(spec.get("ray")), store)
        turn.files.divide()
        self.warden = Watchdog(run.id, lambda: turn.files.join(lock.WARDEN), self._end, self._group)

    def enter(self) -> Dict[str, Any]:
        """Hold the inner head's part of the lock, and confine the run; gives the spec.json with the run's resources."""
        self._turn.files.join(lock.INNER)
        os.environ.update(self._grant.variables())
        affinity = confinement.keep_to(self._grant.cpus)
        if self._group and not self._group.join():
            self._group = None
        self._run.record("lock_held", **self._described(affinity))
        return self._spec

    def limit(self, driver: int) -> None:
        """Bound a driver's data where nothing better keeps it in its memory."""
        if self._limits_data:
            confinement.limit_data(driver, self._grant.memory or 0)

    def kills(self) -> Optional[int]:
        """The number of this run's processes that the kernel ended for want of memory; None where it is not known."""
        return self._group.kills() if self._group else None

    def keep(self) -> None:
        """Touch the lock's files now and then, and record it if another user has removed them."""
        if time.monotonic() < self._next_keep:
            return
        self._next_keep = time.monotonic() + LOOK_FOR_FILES_EVERY
        lost = self._turn.keep()
        if lost != self._lost:
            self._lost = lost
            self._run.record("lock_lost", files=lost)

    def is_wanted(self) -> bool:
        """Whether another run waits in the queue."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_FOR_WAITERS_EVERY
            self._wanted = self._turn.queue.somebody_waits()
        return self._wanted

    def show_idle(self, idle: bool) -> None:
        """Show others whether the run only waits for another call."""
        if idle != self._idles:
            self._idles = idle
            self._turn.queue.show_idle(idle)

    @property
    def _limits_data(self) -> bool:
        free = not self._spec.get("ray") and not self._grant.gpus  # CUDA, as Ray, reserves what it never uses
        return free and self._group is None and self._grant.memory is not None

    def _described(self, affinity: bool) -> Dict[str, Any]:
        grant: Grant = self._grant
        limits = confinement.enforced(self._group, affinity, grant.memory, self._limits_data)
        given = {"slots": len(grant.slots), "cpus": grant.cpus, "gpus": grant.gpus, "memory": grant.memory}
        return {**given, "enforced": limits}

    def _end(self) -> None:
        """End the share: the watchdog calls this when no process of the run is left."""
        if self._group:
            self._group.remove()
        self._last()
        self._turn.queue.leave()
