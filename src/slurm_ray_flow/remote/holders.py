"""Who holds a lock: our own runs by their tickets, anybody else by what the kernel says of the process."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Dict, List, Optional, Sequence

from slurm_ray_flow.remote import lock, processes
from slurm_ray_flow.remote.tickets import Queue, Ticket

UNKNOWN = "somebody"


def holders(descriptors: Sequence[int], queue: Optional[Queue]) -> List[Dict[str, Any]]:
    """Describe each process that holds the lock or one of its slots.

    Args:
        descriptors: the lock's files.
        queue: the lock's queue, where there is one.
    """
    first = next((pid for pid in map(lock.holder, descriptors) if pid is not None), None)
    pids = [first, *(_part_holders(queue) if queue else [])]
    tickets = [ticket for ticket in queue.tickets() if ticket.holds] if queue else []
    believed = [ticket for ticket in tickets if ticket.pid in pids]
    known = {ticket.pid for ticket in believed}
    # Only the lock itself shows strangers, and only where no run of ours is what it shows.
    strangers = [first] if first is not None and first not in known and not believed else []
    return [*map(Ticket.describe, believed), *map(_stranger, strangers)]


def _part_holders(queue: Queue) -> List[int]:
    parts = [name for name in os.listdir(queue.folder) if name.startswith(("slot-", "gpu-"))]
    found = [_holder_of(name, queue) for name in parts]
    return [pid for pid in found if pid is not None]


def _holder_of(name: str, queue: Queue) -> Optional[int]:
    with contextlib.suppress(OSError):
        return queue.peek(name)
    return None


def part_is_free(name: str, queue: Optional[Queue]) -> bool:
    """Whether nobody holds this slot or card."""
    return queue is None or _holder_of(name, queue) is None


def _stranger(pid: int) -> Dict[str, Any]:
    """A process that took the lock without us: who runs it, and since when it runs."""
    user, since = UNKNOWN, None
    with contextlib.suppress(OSError):
        user, since = lock.user_name(os.stat("/proc/{}".format(pid)).st_uid), _started_at(pid)
    return {
        "user": user,
        "since": since,
        "name": "",
        "run": "",
        "server": "",
        "pid": pid,
        "foreign": True,
        "idle": False,
    }


def _started_at(pid: int) -> Optional[float]:
    """When a process started, in seconds since 1970."""
    ticks = processes.started(pid)
    with open("/proc/stat", encoding="ascii") as file:
        booted = next(int(line.split()[1]) for line in file if line.startswith("btime "))
    return None if ticks is None else booted + ticks / os.sysconf("SC_CLK_TCK")
