"""What a call uses and may use: memory, processors, graphics cards."""

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

SHORTEST_LOOK, LONGEST_LOOK = 0.025, 0.2
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SMALL, _NAMED = 1 << 20, 3

Held = Dict[int, int]
"""Processes by their pids, and bytes."""


def lacks_shared_memory() -> bool:
    """Whether there is none, although the system has such a thing."""
    return sys.platform == "linux" and not os.path.isdir(SHARED_MEMORY)


def held(pids: Iterable[int]) -> Held:
    """Bytes that each of these processes holds, as the kernel would count it.

    What several of them share, such as what a process had before it forked, or a segment of shared memory, counts once:
    each has its part. What is only there because files were read does not count. Ray's object store counts elsewhere.
    """
    return parts(bounds(pids))


def bounds(pids: Iterable[int]) -> Held:
    """Bytes that each of these processes holds at most: all that it has, shared or not. Quickly found."""
    return {pid: _bound(pid) for pid in pids}


def may_share(bound: Held) -> bool:
    """Whether there are several of some size: then what each holds at most may be more than what it holds."""
    return sum(size > _SMALL for size in bound.values()) > 1


def parts(bound: Held) -> Held:
    """What `held` gives, of what `bounds` gave; costs the kernel some milliseconds for each GiB."""
    return {pid: _part(pid, size) for pid, size in bound.items()} if may_share(bound) else bound


def largest(sizes: Held) -> str:
    """The processes that hold most, for people: their names, pids and sizes."""
    most = sorted(sizes, key=lambda pid: -sizes[pid])[:_NAMED]
    return ", ".join("{} ({}) {}".format(processes.name(pid), pid, readable(sizes[pid])) for pid in most)


def _bound(pid: int) -> int:
    known = _read(pid, "status")
    if "RssAnon" in known:
        return known["RssAnon"] + (0 if _has_the_store(pid, known) else known["RssShmem"])
    try:  # Linux before 4.5
        with open("/proc/{}/statm".format(pid), encoding="ascii") as file:
            _, resident, shared = file.read().split()[:3]
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE


def _part(pid: int, bound: int) -> int:
    rollup = _read(pid, "smaps_rollup")
    if not rollup:  # gone meanwhile, not ours to look into, or Linux before 4.14
        return bound if processes.is_alive(pid) else 0
    if "Pss_Anon" not in rollup:  # Linux before 5.4 counts files, too
        return min(bound, rollup["Pss"])
    return min(bound, rollup["Pss_Anon"] + rollup["Pss_Shmem"])


def _has_the_store(pid: int, known: Dict[str, int]) -> bool:
    """Whether the shared memory of a process is Ray's object store."""
    if not known["RssShmem"]:
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
    """The sizes in bytes that stand in a file of /proc, such as `status` or `smaps_rollup`."""
    return {name: int(size) << 10 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def shared_memory(pids: Iterable[int]) -> int:
    """Bytes of shared memory that these processes have in use; what several of them share counts once."""
    return max((_read(pid, "status").get("RssShmem", 0) for pid in pids), default=0)


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


LOOK_SECONDS = 5.0
PATIENCE = 10.0
"""A driver in trouble answers late, or never: then it is asked no more."""
_QUERY = ["--query-gpu=index,uuid,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]


class CardMeter:
    """Asks now and then, and never waits for the answer."""

    def __init__(self) -> None:
        self._visible = _visible()
        self._program = shutil.which("nvidia-smi") if self._visible else None
        self._began = self._answered = time.monotonic()
        self._asked = 0.0
        self._process: Optional[subprocess.Popen[bytes]] = None
        self._text = b""
        self._busy, self._peak = 0.0, 0

    def look(self, now: float) -> None:
        """Take an answer that has come; ask, if it is time to."""
        if self._program is None:
            return
        if self._process is not None:
            self._take(now)
        elif now - self._asked >= LOOK_SECONDS:
            self._ask(now)

    def use(self) -> Dict[str, Any]:
        """Seconds that cards were busy, added up, and the most memory that one held; nothing where it is not known."""
        seen = self._answered - self._began
        if not seen:
            return {}
        busy = self._busy / seen * (time.monotonic() - self._began)
        return {"gpu_seconds": round(busy, 1), "gpu_memory_peak": self._peak}

    def _ask(self, now: float) -> None:
        assert self._program is not None
        self._asked, self._text = now, b""
        try:
            self._process = subprocess.Popen(
                [self._program, *_QUERY], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._program = None
            return
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)

    def _take(self, now: float) -> None:
        assert self._process is not None and self._process.stdout is not None
        with contextlib.suppress(BlockingIOError):
            while True:
                piece = os.read(self._process.stdout.fileno(), 65536)
                if not piece:
                    self._count(now)
                    self._let_go()
                    return
                self._text += piece
        if now - self._asked > PATIENCE:
            self._process.kill()
            self._let_go()
            self._program = None

    def _let_go(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.stdout.close()
        self._process.returncode, self._process = 0, None  # the head reaps all its children

    def _count(self, now: float) -> None:
        cards = [(busy, memory) for name, busy, memory in _parsed(self._text) if name & self._visible]
        if cards:
            self._busy += sum(busy for busy, _ in cards) / 100 * (now - self._answered)
            self._peak = max(self._peak, *(memory << 20 for _, memory in cards))
            self._answered = now


def _visible() -> Set[str]:
    return {name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()}


def _parsed(text: bytes) -> List[Tuple[Set[str], int, int]]:
    """Of each card: what it may be called, how many percent it is busy, how many MiB it holds."""
    cards = []
    for line in text.decode("utf-8", "replace").splitlines():
        with contextlib.suppress(ValueError):  # a card that can't say answers "[N/A]"
            index, name, busy, memory = (field.strip() for field in line.split(","))
            cards.append(({index, name}, int(busy), int(memory)))
    return cards
