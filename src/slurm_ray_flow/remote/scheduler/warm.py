"""Warm allocations of a scheduler: runs with the same needs share one."""

from __future__ import annotations

import fcntl
import os
import time
from typing import Any, Dict, List, Optional

from slurm_ray_flow.remote.head.inbox import BUSY, IDLE
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.files import announce, lock_if_possible, names, private_folder, remove, write
from slurm_ray_flow.remote.shared.protocol import TAKEN, find_event


def join_or_offer(root: str, folder: str, run_id: str, needs: Optional[float] = None) -> Optional[str]:
    """Give a call to an allocation that is idle, or has not begun; else list this run's own, for others to join.

    A lock lets only one run at a time do this, so that the second of two finds the allocation of the first.

    Args:
        root: the root folder.
        folder: the list of the allocations with the same needs.
        run_id: the run with the call.
        needs: its time limit in seconds, if it has one.

    Returns:
        The allocation; None if the run needs one of its own.
    """
    private_folder(folder)
    with open(os.open(os.path.join(folder, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)) as lock:
        lock_if_possible(lock.fileno(), fcntl.LOCK_EX)  # without locks, two at once may get an allocation each
        for name in names(folder):
            if name in (run_id, ".lock"):
                continue
            run = RunFiles(root, name)
            if _has_ended(run):
                remove(os.path.join(folder, name))
            elif _is_free(run, needs) and announce(os.path.join(run.inbox, run_id)):
                return name
        write(os.path.join(folder, run_id), b"")
        return None


def _has_ended(run: RunFiles) -> bool:
    return find_event(run.recorded(), "released") is not None or not os.path.isdir(run.inbox)


def _is_free(run: RunFiles, needs: Optional[float]) -> bool:
    """Whether an allocation is idle or has not begun, and lasts long enough for a call."""
    waiting, events = names(run.inbox), run.recorded()
    begun = find_event(events, "call_started") is not None
    if waiting and begun:
        return False
    remaining = _seconds_left(run, events, begun)
    return needs is None or remaining is None or needs <= remaining


def _seconds_left(run: RunFiles, events: List[Dict[str, Any]], begun: bool) -> Optional[float]:
    """Seconds that a call may take there; None if no scheduler limits them, or they are unknown."""
    idle, allocated = find_event(events, IDLE), find_event(events, "allocated")
    if idle is not None:
        return float(idle["ends"]) - time.time() if "ends" in idle else None
    try:
        spec = run.read_spec()
    except (OSError, ValueError):
        return 0.0
    limit = spec.get("time_limit")
    if limit is None or not spec.get("scheduler"):
        return None
    passed = time.time() - allocated["time"] if allocated is not None else 0.0
    first_call = 0.0 if begun else float(limit)  # the first call may take all its time
    return float(limit) + float(spec.get("keep_warm") or 0.0) - first_call - passed


def listed(root: str) -> List[Dict[str, Any]]:
    """The allocations that wait for a next call, or will after their present one.

    Returns:
        For each: its id as `allocation`; its events `allocated` and `idle`, None if there is none or it is not idle;
        and the ids of the runs in its inbox as `calls`.
    """
    allocations, folders = [], os.path.join(root, "warm")
    for folder in names(folders):
        for name in names(os.path.join(folders, folder)):
            run = RunFiles(root, name)
            if name != ".lock" and not _has_ended(run):
                allocations.append({"allocation": name, **_described(run)})
    return allocations


def _described(run: RunFiles) -> Dict[str, Any]:
    events = run.recorded()
    changes = [event for event in events if event["event"] in (IDLE, BUSY)]
    idle = changes[-1] if changes and changes[-1]["event"] == IDLE else None
    calls = [name[: -len(TAKEN)] if name.endswith(TAKEN) else name for name in names(run.inbox)]
    return {"allocated": find_event(events, "allocated"), "idle": idle, "calls": calls}


OPERATIONS: Dict[str, Any] = {"warm.join_or_offer": join_or_offer, "warm.listed": listed}
