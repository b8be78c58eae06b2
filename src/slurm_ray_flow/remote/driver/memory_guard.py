"""The memory of a pilot's workers: one of them is ended before the head would end the whole pilot."""

from __future__ import annotations

import os
import time
from typing import Dict, Optional

from slurm_ray_flow.remote.shared import limits


class MemoryGuard:
    """Measures the pilot's process and its workers, but not what the workers have started.

    The head gives a pilot a second for that.

    Args:
        limit: the run's memory in bytes; None or 0 for no limit.
    """

    def __init__(self, limit: Optional[int]) -> None:
        self._limit = limit or 0
        self._used, self._measured_at, self._next_look = 0, time.monotonic(), 0.0
        self._too_much = 0

    @property
    def due(self) -> float:
        """Seconds until the next measurement."""
        return max(0.0, self._next_look - time.monotonic()) if self._limit else float("inf")

    def too_much(self, workers: Dict[int, int]) -> Optional[int]:
        """The worker that has to end, if they use too much: the largest one.

        Args:
            workers: their numbers by their pids.
        """
        now = time.monotonic()
        if not self._limit or now < self._next_look:
            return None
        sizes = limits.bounds([os.getpid(), *workers])
        if sum(sizes.values()) > self._limit:
            sizes = limits.parts(sizes)
        used = sum(sizes.values())
        self._next_look = now + limits.next_look(used, used - self._used, now - self._measured_at, self._limit)
        self._used, self._measured_at = used, now
        if used <= self._limit:
            return None
        self._too_much = used
        return workers[max(workers, key=lambda pid: sizes[pid])]

    @property
    def text(self) -> str:
        """What to say of an item whose worker was ended."""
        text = "The workers of this pilot used {} of memory, its limit is {}, and the one of this item used most."
        return text.format(limits.readable(self._too_much), limits.readable(self._limit))
