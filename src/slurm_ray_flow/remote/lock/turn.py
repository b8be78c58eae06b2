"""A run's turn on a server under a lock: its ticket in the queue, and then the lock with its slots and GPUs."""

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
"""The fraction of a run's memory for Ray's object store, as in Ray's own default."""


class ServerCapacity(NamedTuple):
    """The processors and the bytes of memory that runs on a server share."""

    cpus: List[int]
    memory: int


class SlotRequest(NamedTuple):
    """The numbers of slots and GPUs that a run takes, and all there are of them."""

    slots: int
    total: int
    gpus: int
    gpu_ids: List[str]


class Grant(NamedTuple):
    """The slots, processors, GPUs and memory of a run; `alone` if the lock has only one slot."""

    slots: List[int]
    cpus: List[int]
    gpus: List[str]
    memory: Optional[int]
    alone: bool

    def applied(self, spec: Dict[str, Any]) -> Dict[str, Any]:
        """The run's spec.json with the granted resources."""
        given = {**spec, "cpus": len(self.cpus), "memory": self.memory}
        if not self.alone and self.memory:
            given["object_store_memory"] = int(self.memory * STORE_SHARE)
        return given

    def variables(self) -> Dict[str, str]:
        """The variables that restrict the run to its GPUs; a run that is alone and requested none sees all."""
        if not self.gpus and self.alone:
            return {}
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus)}


def this_machine() -> ServerCapacity:
    """Processors and memory of this machine, which must be the same for all users who share it."""
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
    """The numbers in a list of the kernel's format: `0-3,8`."""
    ranges = [part.partition("-") for part in text.strip().split(",") if part]
    return [number for first, _, last in ranges for number in range(int(first), int(last or first) + 1)]


def gpu_ids(lock: Dict[str, Any], requested: int = 0) -> List[str]:
    """The GPUs of the lock, by CUDA's names.

    Args:
        lock: spec.json's `lock`; `gpus` may be names, a number, or null for all there are.
        requested: the number that a run requests; if GPUs can't be counted, so many are assumed.
    """
    gpus, restricted = lock.get("gpus"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if isinstance(gpus, list):
        return [str(gpu) for gpu in gpus]
    if gpus is None and restricted is not None:
        return [gpu for gpu in restricted.split(",") if gpu]
    return [str(gpu) for gpu in range(int(gpus) if gpus is not None else max(_gpu_count(), requested))]


def _gpu_count() -> int:
    try:
        return len(os.listdir("/proc/driver/nvidia/gpus"))
    except OSError:
        return 0


def needs(lock: Dict[str, Any], spec: Dict[str, Any], machine: ServerCapacity) -> SlotRequest:
    """The slots and GPUs that a run needs.

    Raises:
        OperationError: it requests more than the server has.
    """
    total = max(1, int(lock.get("slots") or 1))
    wanted = int(spec.get("gpus") or 0)
    gpus = gpu_ids(lock, wanted)
    cpus, memory = int(spec.get("cpus") or 1), int(spec.get("memory") or 1)
    slots = max(1, -(-cpus * total // len(machine.cpus)), -(-memory * total // machine.memory))
    if slots > total:
        raise _too_much("{} processors and {} bytes of memory".format(cpus, memory), machine)
    if wanted > len(gpus):
        raise OperationError(
            "the run asks for {} graphics cards, the server has {}".format(wanted, len(gpus)),
            advice="ask for fewer",
            cause="rejected",
        )
    return SlotRequest(slots, total, wanted, gpus)


def _too_much(asked: str, machine: ServerCapacity) -> OperationError:
    available = "{} processors and {} bytes".format(len(machine.cpus), machine.memory)
    return OperationError(
        "the run asks for {}, there are {}".format(asked, available), advice="ask for less", cause="rejected"
    )


def grant(
    lock: Dict[str, Any], spec: Dict[str, Any], machine: ServerCapacity, slots: Sequence[int], gpus: Sequence[str]
) -> Grant:
    """The resources of these slots and GPUs."""
    total = max(1, int(lock.get("slots") or 1))
    cpus = sorted({cpu for slot in slots for cpu in _part(machine.cpus, slot, total)}) if total > 1 else machine.cpus
    memory = spec.get("memory") or (machine.memory * len(slots) // total if total > 1 else None)
    cpu_count = int(spec.get("cpus") or len(cpus))
    return Grant(list(slots), cpus[:cpu_count], list(gpus), memory, total == 1)


def _part(cpus: List[int], slot: int, total: int) -> List[int]:
    """The processors of one slot; slots share processors only if there are fewer processors than slots."""
    first = slot * len(cpus) // total
    return cpus[first : max(first + 1, (slot + 1) * len(cpus) // total)]


FRONT_PAUSE, PAUSE = 0.15, 0.3
"""Seconds between two tries of the first run in the queue, and of the others."""
KEEP_EVERY = 3600.0
"""Seconds between two touches of the lock's files; clean-ups of old files wait for days."""
STALLED_AFTER = 5.0
"""Seconds that the lock must be free before a run in the queue is passed over: its process is stopped."""


class Turn:
    """One run in the queue.

    Args:
        lock_spec: spec.json's `lock`.
        spec: the run's spec.json.

    Raises:
        OperationError: the lock can't be used, or the run requests more than the server has.
    """

    def __init__(self, lock_spec: Dict[str, Any], spec: Dict[str, Any]) -> None:
        self._lock_spec, self._spec, self._path = lock_spec, spec, str(lock_spec["path"])
        self._machine = this_machine()
        self._needs = needs(lock_spec, spec, self._machine)
        self._paths = lock.file_paths(self._path)
        self._descriptors = [lock.open_shared(path) for path in self._paths]
        self.queue = QueueFolder(self._path)
        self.files = lock.LockFiles()
        self.grant: Optional[Grant] = None
        self._free_since = self._last_touch = time.monotonic()
        self.ahead = 0
        self._enter()

    def _enter(self) -> None:
        owner = self._lock_spec.get("owner") or {}
        self.queue.enter({name: owner.get(name) for name in ("run", "name", "server")})

    @property
    def pause(self) -> float:
        """Seconds until the next try."""
        return PAUSE if self.ahead else FRONT_PAUSE

    def take(self) -> bool:
        """Take the lock, slots and GPUs that the run needs, if it is first in the queue and all are free."""
        if self.queue.is_lost():
            self.queue = QueueFolder(self._path)
            self._enter()
        self._reopen_replaced_files()
        self.ahead = len(self.queue.ahead())
        if self._is_held() and self._needs.total == 1:
            self._free_since = time.monotonic()
            return False
        if self.ahead and not self._all_stalled():
            return False
        return self._take_all()

    def holders(self) -> List[Dict[str, Any]]:
        """The present holders of the lock."""
        return holders(self._descriptors, self.queue)

    def release(self) -> None:
        """Leave the queue without the lock."""
        self.queue.leave()

    def _is_held(self) -> bool:
        return any(lock.holder_pid(descriptor) is not None for descriptor in self._descriptors)

    def _reopen_replaced_files(self) -> None:
        for index, path in enumerate(self._paths):
            if not lock.is_current(self._descriptors[index], path):
                os.close(self._descriptors[index])
                self._descriptors[index] = lock.open_shared(path)
        if time.monotonic() - self._last_touch > KEEP_EVERY:
            self._last_touch = time.monotonic()
            self.keep()

    def keep(self) -> List[str]:
        """Touch the lock's files and its queue, so that no clean-up of old files removes them.

        Returns:
            The paths of removed files that another process has locked meanwhile.
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
        exclusive = self._needs.total == 1
        mode = lock.EXCLUSIVE if exclusive else lock.SHARED
        taken = all(self._take_file(index, mode) for index in range(len(self._paths)))
        if taken and self._take_parts(exclusive):
            return True
        self._release_files()
        return False

    def _take_file(self, index: int, mode: int) -> bool:
        descriptor, path = self._descriptors[index], self._paths[index]
        taken = self.files.take(descriptor, mode, path, partial(lock.open_shared, path))
        return taken and lock.is_current(descriptor, path)

    def _take_parts(self, exclusive: bool) -> bool:
        names = [str(number) for number in range(self._needs.total)]
        slots = ["0"] if exclusive else self._lock_some("slot-", names, self._needs.slots)
        gpus = self._lock_some("gpu-", self._needs.gpu_ids, self._needs.gpus)
        if slots is None or gpus is None:
            return False
        self.grant = grant(self._lock_spec, self._spec, self._machine, list(map(int, slots)), gpus)
        self.queue.own_files |= self.files.identities()
        self.queue.hold()
        return True

    def _lock_some(self, kind: str, names: List[str], count: int) -> Optional[List[str]]:
        """Lock `count` of these slots or GPUs; None if fewer are free."""
        taken: List[str] = []
        for name in names:
            if len(taken) == count:
                break
            descriptor = self._open_part(kind + name, self.queue)
            reopen = partial(self._open_part, kind + name)
            if self.files.take(descriptor, lock.EXCLUSIVE, os.path.join(self.queue.path, kind + name), reopen):
                taken.append(name)
            else:
                os.close(descriptor)
        return taken if len(taken) == count else None

    def _open_part(self, name: str, queue: Optional[QueueFolder] = None) -> int:
        folder = (queue or QueueFolder(self._path)).folder  # a new folder, if the queue was removed
        return lock.open_part(name, folder, self.files.identities() | self.queue.own_files)

    def _release_files(self) -> None:
        """Release all locks by closing their files, and open the lock's files again."""
        self.files.drop()
        self._descriptors = [lock.open_shared(path) for path in self._paths]


def waits_for(turn: Turn) -> Dict[str, Any]:
    """The fields of the event `waiting`."""
    current = turn.holders()
    holder = {name: current[0].get(name) for name in ("user", "since", "name", "run")} if current else None
    return {"ahead": turn.ahead, "holder": holder}
