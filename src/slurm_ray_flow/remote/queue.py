"""Operations: what is to be seen of a lock and its queue. They only look; nobody is disturbed."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Dict, Iterator, List, Optional

from slurm_ray_flow.remote import lock
from slurm_ray_flow.remote.holders import holders, part_is_free
from slurm_ray_flow.remote.tickets import Queue, Ticket


def state(path: str, slots: int = 1) -> Dict[str, Any]:
    """Who holds the lock at this path, who waits for it in which order, how many slots there are and are free.

    Raises:
        OperationError: what lies there is no lock.
    """
    queue = _queue(path)
    try:
        with _looked_at(path) as descriptors:
            found = holders(descriptors, queue) if descriptors else []
            waiting = [ticket for ticket in queue.tickets() if not ticket.holds] if queue else []
            free = _free(found, queue, slots) if descriptors else slots
    finally:
        if queue:
            os.close(queue.folder)
    return {"holders": found, "waiting": list(map(Ticket.describe, waiting)), "slots": slots, "free": free}


def _queue(path: str) -> Optional[Queue]:
    with contextlib.suppress(FileNotFoundError):
        return Queue(path, make=False)
    return None


@contextlib.contextmanager
def _looked_at(path: str) -> Iterator[List[int]]:
    opened = [lock.open_to_look(name) for name in lock.names(path)]
    found = [descriptor for descriptor in opened if descriptor is not None]
    try:
        yield found
    finally:
        for descriptor in found:
            os.close(descriptor)


def _free(found: Any, queue: Optional[Queue], slots: int) -> int:
    if slots == 1 or any(holder["foreign"] for holder in found):
        return 0 if found else slots
    return sum(part_is_free("slot-{}".format(number), queue) for number in range(slots)) if found else slots


OPERATIONS: Dict[str, Any] = {"state": state}
