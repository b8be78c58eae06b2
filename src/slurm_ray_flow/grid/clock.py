"""The engine's time: seconds since 1970 that pass evenly, however the machine's clock is set meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable


def _passed() -> float:
    """Seconds that pass also while the machine sleeps, where it can say so."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class SteadyClock:
    """A clock that is right at first, and never jumps.

    Args:
        wall: the machine's clock.
        passed: seconds from any start on, which no one sets.
    """

    def __init__(self, wall: Callable[[], float] = time.time, passed: Callable[[], float] = _passed) -> None:
        self._passed, self._offset = passed, wall() - passed()

    def __call__(self) -> float:
        return self._passed() + self._offset


now = SteadyClock()
"""The time of this process's campaigns: waits, turns and time limits are counted by it."""
