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

MEASUREMENT_SECONDS = 1.0
LARGEST_SHARE = 0.01
"""The largest share of one processor for measuring: with many processes, measurements are fewer."""

Use = Dict[str, Any]


class UsageMeter:
    """The meter of one call, from its start to its end.

    The kernel adds the times of an ended process to its parent's. Those of the driver's descendants so reach
    this process, which reaps the driver. Those of Ray's workers reach only Ray: their last measured times count.

    Args:
        call_pids: returns the pids of the call.

    Attributes:
        largest: the processes that had most memory in the last measurement, for people.
    """

    def __init__(self, call_pids: Callable[[], Set[int]]) -> None:
        self._call_pids, self._start_time, self._next_measurement = call_pids, time.monotonic(), 0.0
        self._gpus = GpuMeter()
        self._reaped_before = _reaped_seconds()
        self._ended_seconds, self._peak_memory = 0.0, 0
        self.largest = ""
        self._kills_before, self._own_kills_before = limits.out_of_memory_kills(), confinement.own_kills()
        self._last_times: Dict[Tuple[int, int], Tuple[int, float]] = {}
        self._times_before = {key: seconds for key, (_, seconds) in self._times(call_pids()).items()}

    def look(self, now: float) -> None:
        """Measure, if the time of the next measurement has come."""
        if now >= self._next_measurement:
            began = time.process_time()
            pids = self._call_pids()
            sizes = limits.held(pids)
            self.add_memory(sum(sizes.values()))
            self.largest = limits.largest(sizes)
            self._add_times(pids)
            self._gpus.look(now)
            self._next_measurement = now + max(MEASUREMENT_SECONDS, (time.process_time() - began) / LARGEST_SHARE)

    def add_memory(self, used: int) -> None:
        """Add a measurement of the call's memory."""
        self._peak_memory = max(self._peak_memory, used)

    def use(self, spec: Dict[str, Any]) -> Use:
        """The use on this host, with the resources of the allocation's spec.json."""
        pids = self._call_pids()
        self._add_times(pids)
        ray_memory = _ray_memory(pids) if spec.get("scheduler") else 0
        living_seconds = sum(seconds for _, seconds in self._last_times.values())
        ended_seconds = _reaped_seconds() - self._reaped_before + self._ended_seconds
        cpu_seconds = ended_seconds + living_seconds - sum(self._times_before.values())
        return {
            "host": socket.gethostname(),
            "cpu_seconds": round(max(cpu_seconds, 0.0), 2), "cpus": int(spec.get("cpus") or limits.processors()),
            "memory_peak": self._peak_memory + ray_memory, "memory": spec.get("memory"),
            "gpus": int(spec.get("gpus") or 0), **self._kills_since(), **self._gpus.use(),
        }  # fmt: skip

    def _kills_since(self) -> Dict[str, int]:
        """The processes that the kernel has killed for want of memory; `own_kills`, if known, are only the run's."""
        own = confinement.own_kills()
        if own is None or self._own_kills_before is None:
            return {"memory_kills": limits.out_of_memory_kills() - self._kills_before}
        return dict.fromkeys(("memory_kills", "own_kills"), own - self._own_kills_before)

    @property
    def wall(self) -> float:
        """Seconds since the call began."""
        return time.monotonic() - self._start_time

    def _times(self, pids: Set[int]) -> Dict[Tuple[int, int], Tuple[int, float]]:
        """Parent and processor seconds of each process, by its pid and start."""
        times_by_pid = {pid: processes.times(pid) for pid in pids}
        return {(pid, times[0]): times[1:] for pid, times in times_by_pid.items() if times}

    def _add_times(self, pids: Set[int]) -> None:
        times = self._times(pids)
        living = {pid for pid, _ in times}
        parents = {pid: parent for (pid, _), (parent, _) in self._last_times.items()}
        for key, (parent, seconds) in self._last_times.items():
            if key not in times and not _is_counted(parent, parents, living):
                self._ended_seconds += seconds
        self._last_times = times


def _is_counted(parent: int, parents: Dict[int, int], living: Set[int]) -> bool:
    """Whether the times of an ended process are part of those of a living one, or of this process."""
    for _ in range(len(parents) + 1):
        if parent in living or parent == os.getpid():
            return True
        if parent not in parents:
            return False
        parent = parents[parent]
    return False


def _ray_memory(pids: Set[int]) -> int:
    """Bytes of Ray's own processes and of its object store: a scheduler's limit counts them, too."""
    ray_pids = processes.descendants(os.getpid()) - pids
    return sum(limits.held(ray_pids).values()) + limits.shared_memory(ray_pids)


def _reaped_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def total(wall: float, nodes: List[Use]) -> Use:
    """The use of a call on all its hosts: sums, but for memory the largest of one host.

    Args:
        wall: the seconds of the call.
        nodes: the result of `UsageMeter.use` on each.
    """
    sums = {
        name: round(sum(node[name] for node in nodes if name in node), 2)
        for name in ("cpu_seconds", "cpus", "gpus", "gpu_seconds", "memory_kills", "own_kills")
        if any(name in node for node in nodes)
    }
    largest = {
        name: max((node[name] for node in nodes if node.get(name) is not None), default=None)
        for name in ("memory_peak", "memory", "gpu_memory_peak")
        if any(name in node for node in nodes)
    }
    return {"wall": round(wall, 2), **sums, **largest, "nodes": nodes}
