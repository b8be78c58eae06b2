"""The use of processors, memory and GPUs by a call, measured so seldom that it costs nothing."""

from __future__ import annotations

import os
import resource
import socket
import time
from typing import Any, Callable, Dict, List, Set, Tuple

from slurm_ray_flow.remote.lock import confinement
from slurm_ray_flow.remote.shared import limits, processes
from slurm_ray_flow.remote.shared.limits import GpuMeter

LOOK_SECONDS = 1.0
SHARE = 0.01
"""The largest part of a processor for measuring, which is seldom on a machine with many processes."""

Use = Dict[str, Any]


class UsageMeter:
    """The meter of one call, from its start to its end.

    Processes below the driver leave their times to their parents and so to this one, which reaps the driver. Ray's
    workers leave theirs to Ray, which is not the call's: of them, what was seen last counts.

    Args:
        family: gives the pids of the call.

    Attributes:
        largest: the processes that held most at the last look, for people.
    """

    def __init__(self, family: Callable[[], Set[int]]) -> None:
        self._family, self._began, self._next = family, time.monotonic(), 0.0
        self._cards = GpuMeter()
        self._reaped = _reaped_seconds()
        self._ended, self._peak = 0.0, 0
        self.largest = ""
        self._kills, self._own_kills = limits.out_of_memory_kills(), confinement.own_kills()
        self._seen: Dict[Tuple[int, int], Tuple[int, float]] = {}
        self._before = {key: seconds for key, (_, seconds) in self._times(family()).items()}

    def look(self, now: float) -> None:
        """Measure, if it is time to."""
        if now >= self._next:
            before = time.process_time()
            family = self._family()
            found = limits.held(family)
            self.saw_memory(sum(found.values()))
            self.largest = limits.largest(found)
            self._see(family)
            self._cards.look(now)
            self._next = now + max(LOOK_SECONDS, (time.process_time() - before) / SHARE)

    def saw_memory(self, used: int) -> None:
        """Note a measurement of the call's memory from elsewhere."""
        self._peak = max(self._peak, used)

    def use(self, spec: Dict[str, Any]) -> Use:
        """The use on this host, with the resources of the spec.

        Args:
            spec: the allocation's, with what it was given.
        """
        family = self._family()
        self._see(family)
        beside = _held_beside(family) if spec.get("scheduler") else 0
        living = sum(seconds for _, seconds in self._seen.values())
        spent = _reaped_seconds() - self._reaped + self._ended + living - sum(self._before.values())
        return {
            "host": socket.gethostname(),
            "cpu_seconds": round(max(spent, 0.0), 2), "cpus": int(spec.get("cpus") or limits.processors()),
            "memory_peak": self._peak + beside, "memory": spec.get("memory"), "gpus": int(spec.get("gpus") or 0),
            **self._killed(), **self._cards.use(),
        }  # fmt: skip

    def _killed(self) -> Dict[str, int]:
        """Processes that the kernel ended for want of memory: `own_kills`, where that is known, are the run's."""
        own = confinement.own_kills()
        if own is None or self._own_kills is None:
            return {"memory_kills": limits.out_of_memory_kills() - self._kills}
        return dict.fromkeys(("memory_kills", "own_kills"), own - self._own_kills)

    @property
    def wall(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._began

    def _times(self, family: Set[int]) -> Dict[Tuple[int, int], Tuple[int, float]]:
        found = {pid: processes.times(pid) for pid in family}
        return {(pid, times[0]): times[1:] for pid, times in found.items() if times}

    def _see(self, family: Set[int]) -> None:
        now = self._times(family)
        living = {pid for pid, _ in now}
        parents = {pid: parent for (pid, _), (parent, _) in self._seen.items()}
        for key, (parent, seconds) in self._seen.items():
            if key not in now and not _left_to_somebody(parent, parents, living):
                self._ended += seconds
        self._seen = now


def _left_to_somebody(parent: int, parents: Dict[int, int], living: Set[int]) -> bool:
    """Whether the times of a process that is gone are among those of one that lives, or of this one."""
    for _ in range(len(parents) + 1):
        if parent in living or parent == os.getpid():
            return True
        if parent not in parents:
            return False
        parent = parents[parent]
    return False


def _held_beside(family: Set[int]) -> int:
    """What Ray's own processes hold now, its object store too: a scheduler's limit counts all of it."""
    others = processes.descendants(os.getpid()) - family
    return sum(limits.held(others).values()) + limits.shared_memory(others)


def _reaped_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def total(wall: float, nodes: List[Use]) -> Use:
    """What a call used on all its hosts. Memory is per host: of what was used, the most.

    Args:
        wall: how long it ran, in seconds.
        nodes: what `Meter.use` gave on each.
    """
    sums = {
        name: round(sum(node[name] for node in nodes if name in node), 2)
        for name in ("cpu_seconds", "cpus", "gpus", "gpu_seconds", "memory_kills", "own_kills")
        if any(name in node for node in nodes)
    }
    most = {
        name: max((node[name] for node in nodes if node.get(name) is not None), default=None)
        for name in ("memory_peak", "memory", "gpu_memory_peak")
        if any(name in node for node in nodes)
    }
    return {"wall": round(wall, 2), **sums, **most, "nodes": nodes}
