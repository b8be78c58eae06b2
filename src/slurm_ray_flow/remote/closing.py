"""The end of an allocation: whoever waits for a call gets to know that it will not run."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import Any, Dict

from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.protocol import TAKEN


def record_end(run: Run, cause: str, message: str) -> None:
    """Say that a call ended without an outcome."""
    run.make_room()
    run.record("call_ended", outcome=None, cause=cause, message=message)


def close_if_nobody_waits(run: Run) -> bool:
    """Take no more calls, unless one has come already; says whether none has."""
    closed = _closed(run)
    with contextlib.suppress(OSError):
        os.rename(run.inbox, closed)
    if os.path.isdir(closed) and os.listdir(closed):
        with contextlib.suppress(OSError):
            os.rename(closed, run.inbox)
            return False
    return True


def _closed(run: Run) -> str:
    return run.inbox + ".closed"


def close(run: Run, reason: Dict[str, str], ray_folder: str, **told: Any) -> None:
    """Say for each call that will not run that it won't, and release the allocation.

    Args:
        run: the allocation's own run.
        reason: cause and message.
        ray_folder: Ray's private folder, or an empty string.
        told: what else the event says.
    """
    closed = _closed(run)
    with contextlib.suppress(OSError):
        os.rename(run.inbox, closed)
    waiting = os.listdir(closed) if os.path.isdir(closed) else []
    for run_id in {*(name[: -len(TAKEN)] if name.endswith(TAKEN) else name for name in waiting), run.id}:
        with contextlib.suppress(OSError):
            other = Run(run.root, run_id)
            if not other.has_ended():
                record_end(other, reason["cause"], reason["message"])
    if ray_folder:
        shutil.rmtree(ray_folder, ignore_errors=True)
    run.make_room()
    with contextlib.suppress(OSError):
        os.unlink(run.dashboard)
    with contextlib.suppress(FileNotFoundError):
        run.record("released", reason=reason["message"].partition("\n")[0], **told)
