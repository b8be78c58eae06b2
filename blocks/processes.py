"""Processes by name: a pid alone is used again by another process, with its start and its boot it is not.

A home may be shared by several hosts, or by containers. A process of another one can't be seen from here: it is
neither alive nor dead, and `elsewhere` says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from slurm_ray_flow.blocks.shell import inherited, run
from slurm_ray_flow.remote import processes

_LINUX = sys.platform == "linux"


@dataclass(frozen=True)
class Process:
    """One process for ever. `started` counts clock ticks since boot (macOS: seconds since 1970)."""

    pid: int
    started: int
    boot_id: str


@cache
def boot_id() -> str:
    """Where pids mean what they mean here: the boot of the machine, the pid namespace, and the host's name."""
    boot = processes.boot_id() if _LINUX else run(["sysctl", "-n", "kern.bootsessionuuid"], timeout=10).stdout.strip()
    return _place(str(boot), processes.namespace(), socket.gethostname())


def _place(boot: str, namespace: str, host: str) -> str:
    return f"{boot} {namespace or '-'} {host.replace(' ', '-') or '-'}"


def elsewhere(noted: str) -> bool:
    """Whether a process that noted this as its `boot_id` is on another host, or in another pid namespace.

    What older versions noted is the boot alone; then it is taken for a boot of this host.
    """
    (boot, *place), (boot_here, *place_here) = noted.split(" "), boot_id().split(" ")
    if len(place) != len(place_here):
        return False
    return place[0] != place_here[0] if boot == boot_here else place[1] != place_here[1]


def identify(pid: int) -> Process | None:
    """The process that has this pid now; None where there is none, or only what is left of a dead one."""
    started = processes.started(pid) if _LINUX else _started_elsewhere(pid)
    return None if started is None else Process(pid, started, boot_id())


def this_process() -> Process:
    """The process that asks."""
    process = identify(os.getpid())
    assert process is not None, "a process that runs can be seen"
    return process


def alive(process: Process) -> bool:
    """Whether it still runs here; a zombie does not, and one that is `elsewhere` can't be seen."""
    if process.boot_id.split(" ")[0] != boot_id().split(" ")[0] or elsewhere(process.boot_id):
        return False
    now = identify(process.pid)
    return now is not None and now.started == process.started


def alive_as_noted(noted: Mapping[str, Any]) -> bool | None:
    """Whether the process still runs that noted its own `pid`, `started` and `boot_id`; None if it is `elsewhere`.

    Where the system told it only its pid, whoever has that pid now counts.
    """
    boot = str(noted["boot_id"])
    if "namespace" in noted:  # as our program on a cluster writes it
        boot = _place(boot, noted["namespace"], noted["host"])
    if elsewhere(boot):
        return None
    if noted["started"] is None:
        return identify(noted["pid"]) is not None
    return alive(Process(noted["pid"], noted["started"], boot))


def end(process: Process, *, patience: float) -> bool:
    """Ends a process: asks it, waits up to `patience` seconds, then kills it. True when it is gone."""
    for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        if not alive(process):
            return True
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        if wait_gone(process, seconds):
            return True
    return False


def wait_gone(process: Process, seconds: float) -> bool:
    """Waits for a process to end, at most so many seconds; True when it has."""
    deadline = time.monotonic() + seconds
    while alive(process):
        if time.monotonic() > deadline:
            return False
        _reap(process.pid)
        time.sleep(0.02)
    return True


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _started_elsewhere(pid: int) -> int | None:
    answer = run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], timeout=10, env={**inherited(), "LC_ALL": "C"}).stdout
    state, _, started = answer.strip().partition(" ")
    if not state or state.startswith("Z"):
        return None
    return int(time.mktime(time.strptime(started.strip(), "%a %b %d %H:%M:%S %Y")))
