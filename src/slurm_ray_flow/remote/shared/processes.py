"""Processes: their identity, descendants and end, and death together with their parent. Linux has all of it.

Without /proc and prctl (macOS), `ps` lists a process's children, and a child does not die with its parent.
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

WITHHELD: Set[str] = {
    "PREFECT_API_AUTH_STRING",
    "PREFECT_SERVER_API_AUTH_STRING",
    "SRF_GRID_DATABASE_URL",
    "SRF_GRID_TOKEN",
}
"""Variables with secrets, which started programs don't get."""
_DEAD = ("Z", "X")
_LINUX = sys.platform.startswith("linux")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_SET_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36


def _prctl(option: int, value: int) -> bool:
    if not _LINUX:
        return False
    import ctypes

    return int(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)) == 0


def become_subreaper() -> bool:
    """Make this process the parent of orphans among its descendants. False if the system has no such feature."""
    return _prctl(_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int, with_signal: int = signal.SIGKILL) -> None:
    """Have this process get `with_signal` when its parent dies, even by SIGKILL.

    Args:
        parent: the pid of the parent; if it has died already, this process gets the signal at once. 0 for the present
            parent, whichever it is.
        with_signal: the signal.
    """
    _prctl(_SET_DEATH_SIGNAL, with_signal)
    if parent and os.getppid() != parent:
        os.kill(os.getpid(), with_signal)


def inherited() -> Dict[str, str]:
    """This process's variables without the `WITHHELD` ones."""
    return {name: value for name, value in os.environ.items() if name not in WITHHELD}


def started(pid: int) -> Optional[int]:
    """The process's start, in clock ticks since boot (macOS: seconds since 1970); None if it is dead."""
    if not _LINUX:
        return _started_by_ps(pid)
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in _DEAD else None


def _started_by_ps(pid: int) -> Optional[int]:
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    state, _, start_time = (output_of(command, 10, {**inherited(), "LC_ALL": "C"}) or "").strip().partition(" ")
    if not state or state.startswith("Z"):
        return None
    return int(time.mktime(time.strptime(start_time.strip(), "%a %b %d %H:%M:%S %Y")))


def this() -> Dict[str, Any]:
    """The identity of this process, by which liveness.py tells whether it still runs."""
    pid = os.getpid()
    host = {"host": socket.gethostname(), "boot_id": boot_id(), "namespace": namespace()}
    return {"pid": pid, "started": started(pid), **host}


def namespace() -> str:
    """The PID namespace of this process; "" if it is unknown."""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


@functools.lru_cache(maxsize=None)
def boot_id() -> Optional[str]:
    """The identity of this boot of the machine, or None where the system has none."""
    if not _LINUX:
        return (output_of(["sysctl", "-n", "kern.bootsessionuuid"], 10) or "").strip() or None
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
    """A process's start (clock ticks since boot), parent, and processor seconds, with those of its ended children."""
    fields = _stat(pid)
    if fields is None or fields[0] in _DEAD:
        return None
    return int(fields[19]), int(fields[1]), sum(map(int, fields[11:15])) / _TICKS_PER_SECOND


def catches(pid: int, number: int) -> bool:
    """Whether the process has a handler for this signal; True if it is unknown."""
    try:
        with open("/proc/{}/status".format(pid), encoding="utf-8", errors="replace") as file:
            caught = next((line.split()[1] for line in file if line.startswith("SigCgt:")), "")
    except OSError:
        return not os.path.isdir("/proc/self")
    return bool(int(caught or "0", 16) >> (number - 1) & 1)


def name(pid: int) -> str:
    """The process's name, of which the kernel keeps 15 bytes; "?" if it is unknown."""
    try:
        with open("/proc/{}/comm".format(pid), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "?"


def stat_fields(text: str) -> List[str]:
    """The fields of a /proc/PID/stat from the state on: state, parent, ... The name before them may have spaces."""
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
    parents = {}
    for name in os.listdir("/proc"):
        fields = _stat(int(name)) if name.isdigit() else None
        if fields and fields[0] not in _DEAD:
            parents[int(name)] = int(fields[1])
    return parents


def descendants(root: int, without: Iterable[int] = ()) -> Set[int]:
    """All living descendants of the process `root`.

    Args:
        root: the process's pid.
        without: pids to leave out together with their descendants.
    """
    children: Dict[int, List[int]] = {}
    for pid, parent in _parents().items():
        children.setdefault(parent, []).append(pid)
    below: Set[int] = set()
    pending, excluded = list(children.get(root, [])), set(without)
    while pending:
        pid = pending.pop()
        if pid not in excluded and pid not in below:
            below.add(pid)
            pending.extend(children.get(pid, []))
    return below


def end_descendants(without: Iterable[int] = ()) -> bool:
    """Kill all descendants of this process, repeatedly until none lives, for at most five seconds.

    Args:
        without: children to spare together with their descendants.

    Returns:
        Whether none lives.
    """
    spared, deadline = list(without), time.monotonic() + 5.0
    while True:
        living = descendants(os.getpid(), spared)
        if not living:
            return True
        for pid in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def reap() -> Dict[int, int]:
    """Reap ended children; returns exit codes by pid, negative for a signal."""
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


def output_of(command: Sequence[str], seconds: float, variables: Optional[Dict[str, str]] = None) -> Optional[str]:
    """The stdout of a command, whatever its exit code; None if it can't be started or takes too long.

    Args:
        command: program and arguments.
        seconds: the time after which it is killed.
        variables: all its environment variables; None passes on this process's own.
    """
    try:
        result = subprocess.run(
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
    return result.stdout.decode("utf-8", "replace")
