"""The time in which a host can't be reached."""

from __future__ import annotations

import time

from slurm_ray_flow.blocks.ssh.connection import Connection, unreachable
from slurm_ray_flow.core.errors import ConnectionFailed
from slurm_ray_flow.core.interruption import pause
from slurm_ray_flow.core.progress import reporter


class Outage:
    """The time in which a host can't be reached: tries again, tells the user, and gives up in the end."""

    def __init__(self, connection: Connection, label: str) -> None:
        self._connection, self._label = connection, label
        self._asked = time.monotonic()
        self._began: float | None = None
        self._pause = 0.1

    def wait(self, why: str, is_known: bool = True) -> None:
        """Wait before the next try.

        Args:
            why: what went wrong.
            is_known: the host's name leads to an address. One that has never been reached is not waited for without.

        Raises:
            ConnectionFailed: it has lasted too long, or is of no use.
        """
        if not is_known and not self._connection.made:
            advice = (
                "see that the name is right (`srf clusters` shows it), and that the VPN is up where only that knows it"
            )
            raise ConnectionFailed(f"{self._label} can't be reached: {why}", advice=advice)
        now = time.monotonic()
        if self._began is None:  # before the first connection there was nothing but this outage
            self._began = now if self._connection.made else self._asked
        limits = self._connection.limits
        bound = limits.again if self._connection.made else limits.first
        away = now - self._began
        if away >= bound:
            raise unreachable(self._label, why, away)
        reporter().say(f"{self._label} can't be reached ({why}); trying again, {away:.0f} s so far")
        pause(min(self._pause, bound - away))
        self._pause = min(self._pause * 2, 15.0)

    def over(self) -> None:
        """Say that it is there again, if it was away."""
        if self._began is not None:
            reporter().say(f"{self._label} is there again after {time.monotonic() - self._began:.0f} s")
            self._began = None
