"""A run's turn on a server under a lock: it stands in the queue, and then holds the lock, its slots and its cards."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import Any, Dict, List, Optional

from slurm_ray_flow.remote import lock, slots
from slurm_ray_flow.remote.holders import holders
from slurm_ray_flow.remote.tickets import Queue

FRONT_PAUSE, PAUSE = 0.15, 0.3
"""Seconds between two looks of whoever is first in the queue, and of the others."""
KEEP_EVERY = 3600.0
"""Seconds between two touches of the lock's files: what removes old files waits for days."""
STALLED_AFTER = 5.0
"""Seconds for which the lock must have been free before a place in the queue is passed over: its process is stopped."""


class Turn:
    """One run in the queue.

    Args:
        wanted: the lock as spec.json describes it.
        spec: the run's spec.json.

    Raises:
        OperationError: the lock can't be had, or the run asks for more than there is.
    """

    def __init__(self, wanted: Dict[str, Any], spec: Dict[str, Any]) -> None:
        self._wanted, self._spec, self._path = wanted, spec, str(wanted["path"])
        self._machine = slots.this_machine()
        self._needs = slots.needs(wanted, spec, self._machine)
        self._paths = lock.names(self._path)
        self._descriptors = [lock.open_shared(path) for path in self._paths]
        self.queue = Queue(self._path)
        self.files = lock.Files()
        self.grant: Optional[slots.Grant] = None
        self._free_since = self._kept = time.monotonic()
        self.ahead = 0
        self._enter()

    def _enter(self) -> None:
        owner = self._wanted.get("owner") or {}
        self.queue.enter({name: owner.get(name) for name in ("run", "name", "server")})

    @property
    def pause(self) -> float:
        """How long to wait before the next try."""
        return PAUSE if self.ahead else FRONT_PAUSE

    def take(self) -> bool:
        """Take what the run needs, if it is this run's turn and all of it is free."""
        if self.queue.is_lost():
            self.queue = Queue(self._path)
            self._enter()
        self._follow_file()
        self.ahead = len(self.queue.ahead())
        if self._is_held() and self._needs.of == 1:
            self._free_since = time.monotonic()
            return False
        if self.ahead and not self._all_stalled():
            return False
        return self._take_all()

    def holders(self) -> List[Dict[str, Any]]:
        """Who has the lock now."""
        return holders(self._descriptors, self.queue)

    def release(self) -> None:
        """Leave the queue without having had the turn."""
        self.queue.leave()

    def _is_held(self) -> bool:
        return any(lock.holder(descriptor) is not None for descriptor in self._descriptors)

    def _follow_file(self) -> None:
        for place, path in enumerate(self._paths):
            if not lock.is_current(self._descriptors[place], path):
                os.close(self._descriptors[place])
                self._descriptors[place] = lock.open_shared(path)
        if time.monotonic() - self._kept > KEEP_EVERY:
            self._kept = time.monotonic()
            self.keep()

    def keep(self) -> List[str]:
        """Let what removes old files see that the lock's files and its queue are in use.

        Returns:
            The files of this run's that somebody else has now, since they were removed.
        """
        for descriptor in self._descriptors:
            with contextlib.suppress(OSError):
                os.utime(descriptor)
        self.queue.keep()
        return self.files.keep(lock.INNER)

    def _all_stalled(self) -> bool:
        if self._is_held():
            self._free_since = time.monotonic()
        return time.monotonic() - self._free_since > STALLED_AFTER * self.ahead

    def _take_all(self) -> bool:
        alone = self._needs.of == 1
        mode = lock.EXCLUSIVE if alone else lock.SHARED
        taken = all(self._take_file(place, mode) for place in range(len(self._paths)))
        if taken and self._take_parts(alone):
            return True
        self._give_back()
        return False

    def _take_file(self, place: int, mode: int) -> bool:
        descriptor, path = self._descriptors[place], self._paths[place]
        taken = self.files.take(descriptor, mode, path, partial(lock.open_shared, path))
        return taken and lock.is_current(descriptor, path)

    def _take_parts(self, alone: bool) -> bool:
        names = [str(number) for number in range(self._needs.of)]
        numbers = ["0"] if alone else self._some("slot-", names, self._needs.slots)
        cards = self._some("gpu-", self._needs.gpu_ids, self._needs.gpus)
        if numbers is None or cards is None:
            return False
        self.grant = slots.grant(self._wanted, self._spec, self._machine, list(map(int, numbers)), cards)
        self.queue.own |= self.files.identities()
        self.queue.hold()
        return True

    def _some(self, kind: str, names: List[str], count: int) -> Optional[List[str]]:
        """Lock so many of these; None if fewer are free."""
        taken: List[str] = []
        for name in names:
            if len(taken) == count:
                break
            descriptor = self._open_part(kind + name, self.queue)
            again = partial(self._open_part, kind + name)
            if self.files.take(descriptor, lock.EXCLUSIVE, os.path.join(self.queue.path, kind + name), again):
                taken.append(name)
            else:
                os.close(descriptor)
        return taken if len(taken) == count else None

    def _open_part(self, name: str, queue: Optional[Queue] = None) -> int:
        folder = (queue or Queue(self._path)).folder  # another one, where the queue was removed
        return lock.open_part(name, folder, self.files.identities() | self.queue.own)

    def _give_back(self) -> None:
        """Drop everything; closing the lock's own descriptors drops that lock, so they are opened again."""
        self.files.drop()
        self._descriptors = [lock.open_shared(path) for path in self._paths]


def waits_for(turn: Turn) -> Dict[str, Any]:
    """What the event `waiting` says."""
    found = turn.holders()
    first = {name: found[0].get(name) for name in ("user", "since", "name", "run")} if found else None
    return {"ahead": turn.ahead, "holder": first}
