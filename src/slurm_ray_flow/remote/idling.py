"""An allocation that waits for a next call: since when, how long it may, and what it has cost."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, Dict, Optional

from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.tenure import Tenure

SHORTEST_REST = 60.0
"""With less than this left of its job, or a tenth of it, an allocation does not wait for another call."""
IDLE, BUSY = "idle", "busy"


class Idling:
    """The times between the calls of an allocation that is kept warm.

    Args:
        run: the allocation's run.
        spec: its spec.json, with what its job has.
        tenure: what it holds of a server under a lock.
    """

    def __init__(self, run: Run, spec: Dict[str, Any], tenure: Optional[Tenure] = None) -> None:
        self._run, self._tenure = run, tenure
        self._keep_warm, self._lasts = float(spec.get("keep_warm") or 0.0), spec.get("lasts")
        self._began = self._since = time.monotonic()
        self._idles, self._total = False, 0.0
        self._size: Dict[str, Any] = {}

    @property
    def ends(self) -> Optional[float]:
        """When its job is over, by `time.monotonic`; None where it is in none."""
        return None if self._lasts is None else self._began + float(self._lasts)

    def begin(self, size: Dict[str, Any]) -> None:
        """A call has ended.

        Args:
            size: the CPUs and GPUs of the allocation.
        """
        self._idles, self._since, self._size = True, time.monotonic(), size
        if self._keep_warm:
            left = {} if self.ends is None else {"ends": time.time() + self.ends - self._since}
            self._note(IDLE, idled=round(self._total, 3), keep_warm=self._keep_warm, **left, **size)

    def end(self, call: str) -> None:
        """A call begins."""
        if self._idles and self._keep_warm:
            self._note(BUSY, call=call)
        self._count()

    def _note(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # the folder may be gone, and the disk may be full
            self._run.record(event, **fields)

    def _count(self) -> None:
        if self._idles:
            self._idles, self._total = False, self._total + time.monotonic() - self._since

    def why_leave(self) -> Optional[str]:
        """Why it is to wait no longer; None where it may."""
        idle = time.monotonic() - self._since
        if os.path.exists(self._run.cancel):
            return "released"
        if idle >= self._keep_warm:
            return "idle" if self._keep_warm else "done"
        if self.ends is not None and self.ends - time.monotonic() < min(SHORTEST_REST, (self._lasts or 0.0) / 10):
            return "its job is nearly over"
        if self._tenure and self._tenure.is_wanted():
            return "somebody waits for the server"
        return None

    def told(self) -> Dict[str, Any]:
        """What the event `released` says of it."""
        self._count()
        return {"idled": round(self._total, 3), **self._size} if self._keep_warm and self._size else {}
