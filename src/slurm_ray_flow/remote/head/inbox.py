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
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            waiting = [entry for entry in entries if not entry.name.endswith(TAKEN)]
            return [entry.name for entry in sorted(waiting, key=lambda entry: (entry.stat().st_mtime_ns, entry.name))]
        return []

    def take(self, name: str) -> bool:
        """Take a call; returns whether it was there. Its renamed entry marks the allocation as busy until the end.

        The launch may withdraw the entry at the same moment: one of the two renamings fails.
        """
        entry = os.path.join(self._folder, name)
        try:
            os.rename(entry, entry + TAKEN)
        except OSError:
            return False
        return True

    def remove(self, run: RunFiles) -> None:
        """Remove the entry of a call that has ended."""
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, run.id + TAKEN))


SECONDS_BEFORE_JOB_END = 60.0
"""An idle allocation ends this long before its job does, but not before nine tenths of the job's time."""
IDLE, BUSY = "idle", "busy"


class Idling:
    """The times between the calls of an allocation that is kept warm.

    Args:
        run: the allocation's run.
        spec: its spec.json; `lasts` is the time of its job in seconds.
        lock_share: its share of a server under a lock.
    """

    def __init__(self, run: RunFiles, spec: Dict[str, Any], lock_share: Optional[LockShare] = None) -> None:
        self._run, self._lock_share = run, lock_share
        self._keep_warm, self._job_seconds = float(spec.get("keep_warm") or 0.0), spec.get("lasts")
        self._start_time = self._idle_since = time.monotonic()
        self._is_idle, self._idle_total = False, 0.0
        self._resources: Dict[str, Any] = {}

    @property
    def job_end(self) -> Optional[float]:
        """The end of its job, by `time.monotonic`; None outside of a job."""
        return None if self._job_seconds is None else self._start_time + float(self._job_seconds)

    def begin(self, resources: Dict[str, Any]) -> None:
        """Note that a call has ended.

        Args:
            resources: the nodes, CPUs and GPUs of the allocation.
        """
        self._is_idle, self._idle_since, self._resources = True, time.monotonic(), resources
        if self._keep_warm:
            end = {} if self.job_end is None else {"ends": time.time() + self.job_end - self._idle_since}
            self._record(IDLE, idled=round(self._idle_total, 3), keep_warm=self._keep_warm, **end, **resources)

    def end(self, call: str) -> None:
        """Note that a call begins."""
        if self._is_idle and self._keep_warm:
            self._record(BUSY, call=call)
        self._add_idle_time()

    def _record(self, event: str, **fields: Any) -> None:
        with contextlib.suppress(OSError):  # the folder may be gone, and the disk may be full
            self._run.record(event, **fields)

    def _add_idle_time(self) -> None:
        if self._is_idle:
            self._is_idle, self._idle_total = False, self._idle_total + time.monotonic() - self._idle_since

    def end_reason(self) -> Optional[str]:
        """The reason to end; None if the allocation may wait for another call."""
        idle_seconds = time.monotonic() - self._idle_since
        if os.path.exists(self._run.cancel):
            return "released"
        if idle_seconds >= self._keep_warm:
            return "idle" if self._keep_warm else "done"
        margin = min(SECONDS_BEFORE_JOB_END, (self._job_seconds or 0.0) / 10)
        if self.job_end is not None and self.job_end - time.monotonic() < margin:
            return "its job is nearly over"
        if self._lock_share and self._lock_share.is_wanted():
            return "somebody waits for the server"
        return None

    def event_fields(self) -> Dict[str, Any]:
        """The fields about idling in the event `released`."""
        self._add_idle_time()
        return {"idled": round(self._idle_total, 3), **self._resources} if self._keep_warm and self._resources else {}


def record_end(run: RunFiles, cause: str, message: str) -> None:
    """Record that a call ended without an outcome."""
    run.free_reserve()
    run.record("call_ended", outcome=None, cause=cause, message=message)


def close_if_empty(run: RunFiles) -> bool:
    """Close the inbox, unless a call has come already; returns whether it is closed."""
    closed = _closed_inbox(run)
    with contextlib.suppress(OSError):
        os.rename(run.inbox, closed)
    if os.path.isdir(closed) and os.listdir(closed):
        with contextlib.suppress(OSError):
            os.rename(closed, run.inbox)
            return False
    return True


def _closed_inbox(run: RunFiles) -> str:
    return run.inbox + ".closed"


def close(run: RunFiles, reason: Dict[str, str], ray_folder: str, **fields: Any) -> None:
    """Record the end of each call that will not run, and release the allocation.

    Args:
        run: the allocation's own run.
        reason: cause and message.
        ray_folder: Ray's private folder, or an empty string.
        fields: other fields of the event.
    """
    closed = _closed_inbox(run)
    with contextlib.suppress(OSError):
        os.rename(run.inbox, closed)
    waiting = os.listdir(closed) if os.path.isdir(closed) else []
    for run_id in {*(name[: -len(TAKEN)] if name.endswith(TAKEN) else name for name in waiting), run.id}:
        with contextlib.suppress(OSError):
            call_run = RunFiles(run.root, run_id)
            if not call_run.has_ended():
                record_end(call_run, reason["cause"], reason["message"])
    if ray_folder:
        shutil.rmtree(ray_folder, ignore_errors=True)
    run.free_reserve()
    with contextlib.suppress(OSError):
        os.unlink(run.dashboard)
    with contextlib.suppress(FileNotFoundError):
        run.record("released", reason=reason["message"].partition("\n")[0], **fields)
