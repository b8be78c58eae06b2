"""Warm allocations where a scheduler gives them out: those who want one of the same needs at once share one."""

from __future__ import annotations

import fcntl
import os
from typing import Any, Dict, List, Optional

from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.files import announce, names, private_folder, remove, write
from slurm_ray_flow.remote.protocol import find_event


def join_or_offer(root: str, folder: str, run_id: str) -> Optional[str]:
    """Give a call to an allocation that idles, or is still to begin; else list this run's own, for others to join.

    One at a time: of two that come at once, the second finds what the first has listed.

    Args:
        root: the root folder.
        folder: where the allocations of the same needs are listed.
        run_id: the run that has the call.

    Returns:
        The allocation; None where the run is to get one of its own.
    """
    private_folder(folder)
    with open(os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names(folder):
            if name in (run_id, ".lock"):
                continue
            run = Run(root, name)
            if _is_over(run):
                remove(os.path.join(folder, name))
            elif _has_time(run) and announce(os.path.join(run.inbox, run_id)):
                return name
        write(os.path.join(folder, run_id), b"")
        return None


def _is_over(run: Run) -> bool:
    return find_event(run.recorded(), "released") is not None or not os.path.isdir(run.inbox)


def _has_time(run: Run) -> bool:
    """Whether it idles, or is still to begin: then its first call is no longer than its start."""
    waiting: List[str] = names(run.inbox)
    return not waiting or find_event(run.recorded(), "call_started") is None


OPERATIONS: Dict[str, Any] = {"join_or_offer": join_or_offer}
