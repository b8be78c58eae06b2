"""What a call uses and may use: memory, processors, graphics cards."""

from __future__ import annotations

import os
from typing import Dict, Iterable, Optional

SHORTEST_LOOK, LONGEST_LOOK = 0.025, 0.2
_PAGE = os.sysconf("SC_PAGE_SIZE")


def private_memory(pids: Iterable[int]) -> int:
    """Bytes that these processes hold for themselves alone: resident, less what is shared or backed by files."""
    return sum(map(_private, pids))


def _private(pid: int) -> int:
    try:
        with open("/proc/{}/statm".format(pid), encoding="ascii") as file:
            _, resident, shared = file.read().split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE


def shared_memory(pids: Iterable[int]) -> int:
    """Bytes of shared memory that these processes have in use; what several of them share counts once."""
    return max(map(_shared, pids), default=0)


def _shared(pid: int) -> int:
    try:
        with open("/proc/{}/status".format(pid), encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("RssShmem:")), 0)
    except (OSError, ValueError):
        return 0


def next_look(used: int, grown: int, seconds: float, limit: int) -> float:
    """In how many seconds to look at a call's memory again: sooner, the sooner it can reach its limit.

    Args:
        used: bytes that it holds now.
        grown: by how many it grew since the last look.
        seconds: how long ago that was.
        limit: how many it may hold.
    """
    if grown <= 0 or seconds <= 0:
        return LONGEST_LOOK
    until_limit = (limit - used) / (grown / seconds)
    return min(LONGEST_LOOK, max(SHORTEST_LOOK, until_limit / 2))


def out_of_memory_kills() -> int:
    """How often this machine's kernel has killed a process for want of memory."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def be_first_to_go() -> None:
    """Ask the kernel to take this process first when the machine's memory runs out."""
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass


def processors() -> int:
    """How many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def graphics_cards(wanted: Optional[int], environment: Dict[str, str]) -> Dict[str, str]:
    """The variables that restrict a run to its graphics cards.

    Args:
        wanted: how many, or None for whatever is there.
        environment: the variables as they are; a restriction that a scheduler has set already is left alone.
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
    """Hand the user's umask to the processes that will run the user's code; ours write private files only.

    Where loader.py has begun, it knew that umask, and it stays.
    """
    os.environ.setdefault("SRF_UMASK", "{:o}".format(umask))


def restore_umask() -> None:
    """Take the umask that the user has: files on shared group folders are to be as the user wants them."""
    os.umask(int(os.environ.get("SRF_UMASK", "77"), 8))
