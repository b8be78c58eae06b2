"""Processes by name: a pid alone is used again by another process, with its start and its boot it is not."""

from __future__ import annotations

import contextlib
import os
import signal
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
    """One process of this machine for ever. `started` counts clock ticks since boot (macOS: seconds since 1970)."""

    pid: int
    started: int
    boot_id: str


@cache
def boot_id() -> str:
    """The name of this boot of the machine; another one after a restart."""
    if _LINUX:
        return str(processes.boot_id())
    return run(["sysctl", "-n", "kern.bootsessionuuid"], timeout=10).stdout.strip()


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
    """Whether it still runs; a zombie does not."""
    return process.boot_id == boot_id() and identify(process.pid) == process


def alive_as_noted(noted: Mapping[str, Any]) -> bool:
    """Whether the process still runs that noted its own `pid`, `started` and `boot_id`.

    Where the system told it only its pid, whoever has that pid now counts.
    """
    if noted["started"] is None:
        return identify(noted["pid"]) is not None
    return alive(Process(noted["pid"], noted["started"], noted["boot_id"]))


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
