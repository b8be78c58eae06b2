"""The inbox of an allocation: a folder with an entry for each announced call, named by the call's run."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import Any, Dict, List, Optional

from slurm_ray_flow.remote.lock.share import LockShare
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.protocol import TAKEN


class Inbox:
    """The inbox of an allocation, as its head sees it.

    Args:
        run: the allocation's run.
    """

    def __init__(self, run: RunFiles) -> None:
        self._folder = run.inbox

    def entries(self) -> List[str]:
        """The calls that wait, in order of arrival."""
        with contextlib.suppress(OSError), os.scandir(self._folder) as found:
            waiting = [entry for entry in found if not entry.name.endswith(TAKEN)]
            return [entry.name for entry in sorted(waiting, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]
        return []

    def take(self, name: str) -> bool:
        """Take a call. Its entry stays there under another name, and says "busy" until it has ended.

        Whoever put it there may take it back at the same moment: one of the two renamings fails.
        """
        entry = os.path.join(self._folder, name)
        try:
            os.rename(entry, entry + TAKEN)
        except OSError:
            return False
        return True

    def leave(self, run: RunFiles) -> None:
        """Remove the entry of a call that has ended."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, run.id + TAKEN))


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

    def __init__(self, run: RunFiles, spec: Dict[str, Any], tenure: Optional[LockShare] = None) -> None:
        self._run, self._tenure = run, tenure
        self._keep_warm, self._lasts = float(spec.get("keep_warm") or 0.0), spec.get("lasts")
        self._began = self._since = time.monotonic()
        self._idles, self._total = False, 0.0
        self._size: Dict[str, Any] = {}

    @property
    def ends(self) -> Optional[float]:
        """The end of its job, by `time.monotonic`; None outside of a job."""
        return None if self._lasts is None else self._began + float(self._lasts)

    def begin(self, size: Dict[str, Any]) -> None:
        """Note that a call has ended.

        Args:
            size: the CPUs and GPUs of the allocation.
        """
        self._idles, self._since, self._size = True, time.monotonic(), size
        if self._keep_warm:
            left = {} if self.ends is None else {"ends": time.time() + self.ends - self._since}
            self._note(IDLE, idled=round(self._total, 3), keep_warm=self._keep_warm, **left, **size)

    def end(self, call: str) -> None:
        """Note that a call begins."""
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
        """The reason to wait no longer; None for none."""
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
        """The fields of the event `released` about idling."""
        self._count()
        return {"idled": round(self._total, 3), **self._size} if self._keep_warm and self._size else {}


def record_end(run: RunFiles, cause: str, message: str) -> None:
    """Record that a call ended without an outcome."""
    run.free_reserve()
    run.record("call_ended", outcome=None, cause=cause, message=message)


def close_if_nobody_waits(run: RunFiles) -> bool:
    """Close the inbox, unless a call has come already; gives whether it is closed."""
    closed = _closed(run)
    with contextlib.suppress(OSError):
        os.rename(run.inbox, closed)
    if os.path.isdir(closed) and os.listdir(closed):
        with contextlib.suppress(OSError):
            os.rename(closed, run.inbox)
            return False
    return True


def _closed(run: RunFiles) -> str:
    return run.inbox + ".closed"


def close(run: RunFiles, reason: Dict[str, str], ray_folder: str, **fields: Any) -> None:
    """Record the end of each call that will not run, and release the allocation.

    Args:
        run: the allocation's own run.
        reason: cause and message.
        ray_folder: Ray's private folder, or an empty string.
        fields: what else the event says.
    """
    closed = _closed(run)
    with contextlib.suppress(OSError):
        os.rename(run.inbox, closed)
    waiting = os.listdir(closed) if os.path.isdir(closed) else []
    for run_id in {*(name[: -len(TAKEN)] if name.endswith(TAKEN) else name for name in waiting), run.id}:
        with contextlib.suppress(OSError):
            other = RunFiles(run.root, run_id)
            if not other.has_ended():
                record_end(other, reason["cause"], reason["message"])
    if ray_folder:
        shutil.rmtree(ray_folder, ignore_errors=True)
    run.free_reserve()
    with contextlib.suppress(OSError):
        os.unlink(run.dashboard)
    with contextlib.suppress(FileNotFoundError):
        run.record("released", reason=reason["message"].partition("\n")[0], **fields)
