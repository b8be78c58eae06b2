"""The memory, processors and GPUs that a call uses and may use."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.remote.shared.protocol import SHARED_MEMORY

SHORTEST_PAUSE, LONGEST_PAUSE = 0.025, 0.2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SMALL_PROCESS, _LARGEST_COUNT = 1 << 20, 3

BytesByPid = Dict[int, int]


def lacks_shared_memory() -> bool:
    """Whether this is Linux without its folder of shared memory."""
    return sys.platform == "linux" and not os.path.isdir(SHARED_MEMORY)


def held(pids: Iterable[int]) -> BytesByPid:
    """Bytes of memory of each process, as the kernel counts them for a limit.

    Memory that processes share, from a fork or as a segment of shared memory, is divided among them. The cache of files
    and Ray's object store don't count.
    """
    return parts(bounds(pids))


def bounds(pids: Iterable[int]) -> BytesByPid:
    """Bytes of memory of each process, with all that it shares: an upper bound that takes little time to read."""
    return {pid: _upper_bound(pid) for pid in pids}


def may_share(bound: BytesByPid) -> bool:
    """Whether several processes have more than `_SMALL_PROCESS`, so that shared memory may count twice in `bounds`."""
    return sum(size > _SMALL_PROCESS for size in bound.values()) > 1


def parts(bound: BytesByPid) -> BytesByPid:
    """The result of `held` from that of `bounds`; the kernel takes some milliseconds for each GiB."""
    return {pid: _proportional_share(pid, size) for pid, size in bound.items()} if may_share(bound) else bound


def largest(sizes: BytesByPid) -> str:
    """The processes with most memory, for people: their names, pids and sizes."""
    most = sorted(sizes, key=lambda pid: -sizes[pid])[:_LARGEST_COUNT]
    return ", ".join("{} ({}) {}".format(processes.name(pid), pid, readable(sizes[pid])) for pid in most)


def _upper_bound(pid: int) -> int:
    status = _read(pid, "status")
    if "RssAnon" in status:
        return status["RssAnon"] + (0 if _maps_object_store(pid, status) else status["RssShmem"])
    try:  # Linux before 4.5
        with open("/proc/{}/statm".format(pid), encoding="ascii") as file:
            _, resident, shared = file.read().split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE


def _proportional_share(pid: int, bound: int) -> int:
    rollup = _read(pid, "smaps_rollup")
    if not rollup:  # the process has ended, is another user's, or this is Linux before 4.14
        return bound if processes.is_alive(pid) else 0
    if "Pss_Anon" not in rollup:  # Linux before 5.4 counts files, too
        return min(bound, rollup["Pss"])
    return min(bound, rollup["Pss_Anon"] + rollup["Pss_Shmem"])


def _maps_object_store(pid: int, status: Dict[str, int]) -> bool:
    """Whether the shared memory of a process is Ray's object store."""
    if not status["RssShmem"]:
        return False
    try:
        with open("/proc/{}/maps".format(pid), "rb") as file:
            return b"/plasma" in file.read()
    except OSError:
        return False


def _read(pid: int, name: str) -> Dict[str, int]:
    try:
        with open("/proc/{}/{}".format(pid, name), encoding="utf-8", errors="replace") as file:
            return sizes(file.read())
    except OSError:
        return {}


def sizes(text: str) -> Dict[str, int]:
    """The sizes in bytes by their names in a file of /proc, such as `status` or `smaps_rollup`."""
    return {name: int(size) << 10 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def shared_memory(pids: Iterable[int]) -> int:
    """Bytes of shared memory that these processes use; a segment that several share counts once."""
    return max((_read(pid, "status").get("RssShmem", 0) for pid in pids), default=0)


def next_look(used: int, grown: int, seconds: float, limit: int) -> float:
    """Seconds until the next measurement of a call's memory: fewer, the sooner it can reach its limit.

    Args:
        used: the call's bytes now.
        grown: the bytes that were added since the last measurement.
        seconds: the time since then.
        limit: the bytes that the call may have.
    """
    if grown <= 0 or seconds <= 0:
        return LONGEST_PAUSE
    until_limit = (limit - used) / (grown / seconds)
    return min(LONGEST_PAUSE, max(SHORTEST_PAUSE, until_limit / 2))


def out_of_memory_kills() -> int:
    """The number of processes that this machine's kernel has killed for want of memory."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def be_first_to_go() -> None:
    """Ask the kernel to kill this process first when the machine runs out of memory."""
    _set_order_to_go("1000")


def go_after_children() -> None:
    """Ask the kernel to kill children of this process before it, if they have asked to be the first to go."""
    _set_order_to_go("900")


def _set_order_to_go(number: str) -> None:
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(number)


def processors() -> int:
    """The number of processors that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def gpu_variables(wanted: Optional[int], environment: Dict[str, str]) -> Dict[str, str]:
    """The variables that restrict a run to its GPUs.

    Args:
        wanted: the number of GPUs, or None for all there are.
        environment: the present variables; a restriction that a scheduler has set remains.
    """
    if not wanted or "CUDA_VISIBLE_DEVICES" in environment:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, range(wanted)))}


def readable(size: float) -> str:
    """A number of bytes for people, such as `1.5 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return "{:.4g} {}".format(size, unit)
        size /= 1024
    return "{:.4g} GiB".format(size)


def keep_umask(umask: int) -> None:
    """Pass the user's umask to the processes that run the user's code; those of this package have a private one.

    A umask that loader.py has noted remains.
    """
    os.environ.setdefault("SRF_UMASK", "{:o}".format(umask))


def restore_umask() -> None:
    """Set the user's own umask, so that files in a group's shared folders get the modes that the user wants."""
    os.umask(int(os.environ.get("SRF_UMASK", "77"), 8))


GPU_QUERY_INTERVAL = 5.0
GPU_QUERY_SECONDS = 10.0
"""Seconds after which a query without an answer is killed, and no other one is made: a broken driver answers none."""
_QUERY = ["--query-gpu=index,uuid,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


class GpuMeter:
    """Measures the use of this process's GPUs by nvidia-smi, without waiting for its answers."""

    def __init__(self) -> None:
        self._visible_gpus = _visible_gpus()
        self._program = shutil.which("nvidia-smi") if self._visible_gpus else None
        self._start = self._last_answer = time.monotonic()
        self._last_query = 0.0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._text = b""
        self._busy_seconds, self._peak_memory = 0.0, 0

    def look(self, now: float) -> None:
        """Read an answer that has come; start the next query when its time has come."""
        if self._program is None:
            return
        if self._process is not None:
            self._read_answer(now)
        elif now - self._last_query >= GPU_QUERY_INTERVAL:
            self._start_query(now)

    def use(self) -> Dict[str, Any]:
        """The sum of the GPUs' busy seconds, and the most memory that one of them had in use; empty if unknown."""
        measured = self._last_answer - self._start
        if not measured:
            return {}
        busy = self._busy_seconds / measured * (time.monotonic() - self._start)
        return {"gpu_seconds": round(busy, 1), "gpu_memory_peak": self._peak_memory}

    def _start_query(self, now: float) -> None:
        assert self._program is not None
        self._last_query, self._text = now, b""
        try:
            self._process = subprocess.Popen(
                [self._program, *_QUERY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._program = None
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _read_answer(self, now: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                data = os.read(self._process.stdout.fileno(), 65536)
                if not data:
                    self._add_answer(now)
                    self._close_query()
                    return
                self._text += data
        if now - self._last_query > GPU_QUERY_SECONDS:
            self._process.kill()
            self._close_query()
            self._program = None

    def _close_query(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.stdout.close()
        self._process.returncode, self._process = 0, None  # the head reaps all its children

    def _add_answer(self, now: float) -> None:
        gpus = [(busy, memory) for name, busy, memory in _parsed_gpus(self._text) if name & self._visible_gpus]
        if gpus:
            self._busy_seconds += sum(busy for busy, _ in gpus) / 100 * (now - self._last_answer)
            self._peak_memory = max(self._peak_memory, *(memory << 20 for _, memory in gpus))
            self._last_answer = now


def _visible_gpus() -> Set[str]:
    return {name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()}


def _parsed_gpus(text: bytes) -> List[Tuple[Set[str], int, int]]:
    """For each GPU: its names, the percentage of time in which it was busy, the MiB of its memory in use."""
    gpus = []
    for line in text.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):  # "[N/A]" for what a GPU can't measure
            index, name, busy, memory = (field.strip() for field in line.split(","))
            gpus.append(({index, name}, int(busy), int(memory)))
    return gpus
