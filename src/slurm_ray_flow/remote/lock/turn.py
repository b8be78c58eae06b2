"""A run's turn on a server under a lock: it stands in the queue, and then holds the lock, its slots and its cards."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from slurm_ray_flow.remote.lock import lock
from slurm_ray_flow.remote.lock.queue import QueueFolder, holders
from slurm_ray_flow.remote.shared.protocol import OperationError

STORE_SHARE = 0.3
"""The part of a run's memory that Ray's object store may take, as Ray itself divides a machine."""


class ServerCapacity(NamedTuple):
    """What a server has to share out."""

    cpus: List[int]
    memory: int


class SlotRequest(NamedTuple):
    """How many slots and graphics cards a run takes, out of which."""

    slots: int
    of: int
    gpus: int
    gpu_ids: List[str]


class Grant(NamedTuple):
    """What a run was given."""

    slots: List[int]
    cpus: List[int]
    gpus: List[str]
    memory: Optional[int]
    alone: bool

    def applied(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        """The run's spec.json with what it was given."""
        given = {**spec, "cpus": len(self.cpus), "memory": self.memory}
        if not self.alone and self.memory:
            given["object_store_memory"] = int(self.memory * STORE_SHARE)
        return given

    def variables(self) -> Dict[str, str]:
        """What restricts the run to its graphics cards; who is alone and asked for none may see all."""
        if not self.gpus and self.alone:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}


def this_machine() -> ServerCapacity:
    """Processors and memory of the machine this runs on. All users must see the same, to share it out."""
    cpus = _online()
    with contextlib.suppress(AttributeError, OSError):
        allowed = os.sched_getaffinity(0)
        cpus = [cpu for cpu in cpus if cpu in allowed] or sorted(allowed)
    return ServerCapacity(cpus, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _online() -> List[int]:
    try:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
            return parse_list(file.read())
    except (OSError, ValueError):
        return list(range(os.cpu_count() or 1))


def parse_list(text: str) -> List[int]:
    """The numbers in a list as the kernel writes it: `0-3,8`."""
    ends = [part.partition("-") for part in text.strip().split(",") if part]
    return [number for first, _, last in ends for number in range(int(first), int(last or first) + 1)]


def gpu_ids(lock: Dict[str, Any], wanted: int = 0) -> List[str]:
    """The graphics cards that the lock shares out, by the names that CUDA knows them by.

    Args:
        lock: as spec.json describes it; `gpus` may be names, a number, or null for all there are.
        wanted: how many a run asks for: where the cards can't be counted, there are taken to be so many.
    """
    gpus, restricted = lock.get("gpus"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if isinstance(gpus, list):
        return [str(card) for card in gpus]
    if gpus is None and restricted is not None:
        return [card for card in restricted.split(",") if card]
    return [str(card) for card in range(int(gpus) if gpus is not None else max(_cards(), wanted))]


def _cards() -> int:
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0


def needs(lock: Dict[str, Any], spec: Dict[str, Any], machine: ServerCapacity) -> SlotRequest:
    """How much of the server a run must have.

    Raises:
        OperationError: it asks for more than there is.
    """
    of = max(1, int(lock.get("slots") or 1))
    wanted = int(spec.get("gpus") or 0)
    cards = gpu_ids(lock, wanted)
    cpus, memory = int(spec.get("cpus") or 1), int(spec.get("memory") or 1)
    slots = max(1, -(-cpus * of // len(machine.cpus)), -(-memory * of // machine.memory))
    if slots > of:
        raise _too_much("{} processors and {} bytes of memory".format(cpus, memory), machine)
    if wanted > len(cards):
        raise OperationError(
            "the run asks for {} graphics cards, the server has {}".format(wanted, len(cards)),
            advice="ask for fewer",
            cause="rejected",
        )
    return SlotRequest(slots, of, wanted, cards)


def _too_much(asked: str, machine: ServerCapacity) -> OperationError:
    there = "{} processors and {} bytes".format(len(machine.cpus), machine.memory)
    return OperationError(
        "the run asks for {}, there are {}".format(asked, there), advice="ask for less", cause="rejected"
    )


def grant(
    lock: Dict[str, Any], spec: Dict[str, Any], machine: ServerCapacity, slots: Sequence[int], gpus: Sequence[str]
) -> Grant:
    """What comes with these slots and cards."""
    of = max(1, int(lock.get("slots") or 1))
    cpus = sorted({cpu for slot in slots for cpu in _part(machine.cpus, slot, of)}) if of > 1 else machine.cpus
    memory = spec.get("memory") or (machine.memory * len(slots) // of if of > 1 else None)
    asked = int(spec.get("cpus") or len(cpus))
    return Grant(list(slots), cpus[:asked], list(gpus), memory, of == 1)


def _part(cpus: List[int], slot: int, of: int) -> List[int]:
    """The processors of one slot: those of two slots are never the same, unless there are fewer than slots."""
    first = slot * len(cpus) // of
    return cpus[first : max(first + 1, (slot + 1) * len(cpus) // of)]


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
        self._machine = this_machine()
        self._needs = needs(wanted, spec, self._machine)
        self._paths = lock.names(self._path)
        self._descriptors = [lock.open_shared(path) for path in self._paths]
        self.queue = QueueFolder(self._path)
        self.files = lock.LockFiles()
        self.grant: Optional[Grant] = None
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
            self.queue = QueueFolder(self._path)
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
        self.grant = grant(self._wanted, self._spec, self._machine, list(map(int, numbers)), cards)
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

    def _open_part(self, name: str, queue: Optional[QueueFolder] = None) -> int:
        folder = (queue or QueueFolder(self._path)).folder  # another one, where the queue was removed
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
