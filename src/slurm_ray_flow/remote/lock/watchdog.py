"""The watchdog: the third process of a run under a lock, which outlives keeper and inner head by a moment.

It waits until both have ended, for whatever reason, kills the other processes of the run, and then releases the lock.
So the next run never begins beside a process of this one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Callable, Iterator, Optional, Set

from slurm_ray_flow.remote.lock.confinement import ControlGroup
from slurm_ray_flow.remote.shared import processes

_EXITING = 0x4
KILL_SECONDS = 10.0
"""Seconds until the lock is released although SIGKILL has not ended a process, which waits for a dead disk."""


class Watchdog:
    """The watchdog's process, as the keeper knows it.

    Args:
        run_id: the run, which its processes have in SRF_ALLOCATION.
        lock_part: locks the watchdog's part; called in the watchdog.
        clean_up: called in the watchdog when all processes of the run have ended.
        group: the run's control group.
    """

    def __init__(
        self, run_id: str, lock_part: Callable[[], None], clean_up: Callable[[], None], group: Optional[ControlGroup]
    ) -> None:
        self._marker, self._group, self._clean_up = "SRF_ALLOCATION={}".format(run_id).encode(), group, clean_up
        self._reading, self._writing = os.pipe()
        ready, started = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ready)
            self._run(lock_part, started)
        for descriptor in (self._reading, started):
            os.close(descriptor)
        os.read(ready, 1)
        os.close(ready)

    def _run(self, lock_part: Callable[[], None], started: int) -> None:
        try:
            os.close(self._writing)
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            lock_part()
            os.close(started)
            os.read(self._reading, 1)  # returns when keeper and inner head, which have the other end, are gone
            self._kill_run()
            self._clean_up()
        finally:
            os._exit(0)

    def _kill_run(self) -> None:
        deadline = time.monotonic() + KILL_SECONDS
        exiting = _exiting_processes()
        while time.monotonic() < deadline:
            living = self._run_processes()
            exiting = {pid for pid in exiting | living if processes.is_alive(pid)}
            if not exiting:
                return
            for pid in living:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _run_processes(self) -> Set[int]:
        """The processes that have the run's id in their variables, or are in its group."""
        grouped = set(self._group.processes()) if self._group else set()
        marked = {pid for pid in _pids() if self._is_marked(pid)}
        return {pid for pid in grouped | marked if pid != os.getpid() and processes.is_alive(pid)}

    def _is_marked(self, pid: int) -> bool:
        try:
            with open("/proc/{}/environ".format(pid), "rb") as file:
                return self._marker in file.read().split(b"\0")
        except OSError:
            return False


def _pids() -> Iterator[int]:
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def _exiting_processes() -> Set[int]:
    """This user's processes that are exiting: they still exist, but their variables can't be read."""
    pids = set()
    for pid in _pids():
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open("/proc/{}/stat".format(pid), encoding="utf-8", errors="replace") as file:
                flags = int(processes.stat_fields(file.read())[6])
            if flags & _EXITING and os.stat("/proc/{}".format(pid)).st_uid in (os.geteuid(), 0):
                pids.add(pid)
    return pids
