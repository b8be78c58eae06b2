"""Owning processes: who descends from whom, ending them all, dying with one's parent. Linux in full.

Where there is no /proc and no prctl (macOS), a process's children are asked of `ps`, and a child whose parent is
killed notices it only by itself.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

WITHHELD: Set[str] = {"PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"}
"""Variables with secrets that no program which is started from here needs."""
_DEAD = ("Z", "X")
_LINUX = sys.platform.startswith("linux")
_TICKS = os.sysconf("SC_CLK_TCK")
_SET_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> bool:
    if not _LINUX:
        return False
    import ctypes

    return int(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)) == 0


def become_subreaper() -> bool:
    """Make orphans among this process's descendants its own children. False where the system can't."""
    return _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, with_signal: int = signal.SIGKILL) -> None:
    """Have this process get `with_signal` when the parent dies, even by SIGKILL.

    Args:
        parent: the pid of the parent; if it is gone already, this process ends at once. 0 for whoever that is now.
        with_signal: the signal.
    """
    _prctl(_SET_DEATH_SIGNAL, with_signal)
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), with_signal)


def inherited() -> Dict[str, str]:
    """This process's environment without what is withheld."""
    return {name: value for name, value in os.environ.items() if name not in WITHHELD}


def started(pid: int) -> Optional[int]:
    """When the process started, in clock ticks since boot (macOS: seconds since 1970); None if it is gone or dead."""
    if not _LINUX:
        return _started_by_ps(pid)
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in _DEAD else None


def _started_by_ps(pid: int) -> Optional[int]:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    state, _, began = (said_by(command, 10, {**inherited(), "LC_ALL": "C"}) or "").strip().partition(" ")
    if not state or state.startswith("Z"):
        return None
    return int(time.mktime(time.strptime(began.strip(), "%a %b %d %H:%M:%S %Y")))


def this() -> Dict[str, Any]:
    """What this process is for others who want to know whether it lives: liveness.py reads it."""
    pid = os.getpid()
    here = {"host": socket.gethostname(), "boot_id": boot_id(), "namespace": namespace()}
    return {"pid": pid, "started": started(pid), **here}


def namespace() -> str:
    """The namespace that the numbers of processes belong to; "" where the system does not say."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


@functools.lru_cache(maxsize=None)
def boot_id() -> Optional[str]:
    """The identity of this boot of the machine, or None where the system has none."""
    if not _LINUX:
        return (said_by(["sysctl", "-n", "kern.bootsessionuuid"], 10) or "").strip() or None
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return None


def is_alive(pid: int) -> bool:
    """Whether the process exists and is not a zombie."""
    fields = _stat(pid)
    if fields is not None:
        return fields[0] not in _DEAD
    if os.path.isdir("/proc/self"):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def times(pid: int) -> Optional[Tuple[int, int, float]]:
    """When a process started, its parent, and the processor seconds that it and its children that have ended took."""
    fields = _stat(pid)
    if fields is None or fields[0] in _DEAD:
        return None
    return int(fields[19]), int(fields[1]), sum(map(int, fields[11:15])) / _TICKS


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal; True where the system does not say."""
    try:
        with open("/proc/{}/status".format(pid), encoding="utf-8", errors="replace") as file:
            caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "")
    except OSError:
        return not os.path.isdir("/proc/self")
    return bool(int(caught or "0", 16) >> (number - 1) & 1)


def name(pid: int) -> str:
    """What the process calls itself, cut by the kernel after 15 bytes; "?" where that can't be told."""
    try:
        with open("/proc/{}/comm".format(pid), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def stat_fields(text: str) -> List[str]:
    """The fields of a /proc/PID/stat from the state on: state, parent, ... The name before may hold anything."""
    return text.rpartition(")")[2].split()


def _stat(pid: int) -> Optional[List[str]]:
    try:
        with open("/proc/{}/stat".format(pid), encoding="utf-8", errors="replace") as file:
            return stat_fields(file.read())
    except OSError:
        return None


def _parents() -> Dict[int, int]:
    """The parent of every living process."""
    if not os.path.isdir("/proc/self"):
        listing = subprocess.run(["ps", "-axo", "pid=,ppid="], stdout=subprocess.PIPE, check=False).stdout
        pairs = (line.split() for line in listing.decode().splitlines())
        return {int(pid): int(parent) for pid, parent in pairs}
    found = {}
    for name in os.listdir("/proc"):
        fields = _stat(int(name)) if name.isdigit() else None
        if fields and fields[0] not in _DEAD:
            found[int(name)] = int(fields[1])
    return found


def descendants(root: int, without: Iterable[int] = ()) -> Set[int]:
    """All living processes below `root`, itself not included.

    Args:
        root: the pid to start from.
        without: pids that are left out together with everything below them.
    """
    children: Dict[int, List[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    found: Set[int] = set()
    left, excluded = list(children.get(root, [])), set(without)
    while left:
        pid = left.pop()
        if pid not in excluded and pid not in found:
            found.add(pid)
            left.extend(children.get(pid, []))
    return found


def end_descendants(without: Iterable[int] = (), seconds: float = 5.0) -> bool:
    """SIGKILL everything below this process, again and again until nothing is left.

    Args:
        without: children that are spared, with everything below them.
        seconds: when to give up.

    Returns:
        Whether nothing is left.
    """
    spared, deadline = list(without), time.monotonic() + seconds
    while True:
        left = descendants(os.getpid(), spared)
        if not left:
            return True
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def reap() -> Dict[int, int]:
    """Collect children that have ended: pid to exit code, negative for a signal."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = exit_code(status)
    return ended


def exit_code(status: int) -> int:
    """The exit code in a wait status, negative for a signal (`os.waitstatus_to_exitcode` of later Pythons)."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def said_by(command: Sequence[str], seconds: float, variables: Optional[Dict[str, str]] = None) -> Optional[str]:
    """What it writes to stdout, however it ends; None where it can't be started or takes too long.

    Args:
        command: program and arguments.
        seconds: how long it may take.
        variables: its whole environment; None passes on this process's own.
    """
    try:
        done = subprocess.run(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            env=variables,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace")
