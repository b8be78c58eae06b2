"""The watchdog: the third process of a run under a lock, which outlives keeper and inner head by a moment.

It only waits. When both are gone, however that came, it ends what is left of the run and then lets the lock go. So
the next run never begins beside a process of this one.
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
GIVE_UP = 10.0
"""Seconds after which a process that SIGKILL does not end (it waits for a dead disk) holds the lock no longer."""


class Watchdog:
    """The watchdog's process, as the keeper knows it.

    Args:
        run_id: the run, as its processes carry it in SRF_ALLOCATION.
        hold: takes the warden's part of the lock; called in the warden.
        last: what is left to do when no process of the run is left; called in the warden.
        group: the run's control group.
    """

    def __init__(
        self, run_id: str, hold: Callable[[], None], last: Callable[[], None], group: Optional[ControlGroup]
    ) -> None:
        self._marker, self._group, self._last = "SRF_ALLOCATION={}".format(run_id).encode(), group, last
        self._reading, self._writing = os.pipe()
        ready, started = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(ready)
            self._be(hold, started)
        for descriptor in (self._reading, started):
            os.close(descriptor)
        os.read(ready, 1)
        os.close(ready)

    def _be(self, hold: Callable[[], None], started: int) -> None:
        try:
            os.close(self._writing)
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            hold()
            os.close(started)
            os.read(self._reading, 1)  # ends when keeper and inner head, which hold the other end, are gone
            self._end_what_is_left()
            self._last()
        finally:
            os._exit(0)

    def _end_what_is_left(self) -> None:
        deadline = time.monotonic() + GIVE_UP
        leaving = _leaving()
        while time.monotonic() < deadline:
            left = self._left()
            leaving = {pid for pid in leaving | left if processes.is_alive(pid)}
            if not leaving:
                return
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)

    def _left(self) -> Set[int]:
        """The processes that carry the run's id since their start, or are in its group."""
        known = set(self._group.processes()) if self._group else set()
        marked = {pid for pid in _pids() if self._is_marked(pid)}
        return {pid for pid in known | marked if pid != os.getpid() and processes.is_alive(pid)}

    def _is_marked(self, pid: int) -> bool:
        try:
            with open("/proc/{}/environ".format(pid), "rb") as file:
                return self._marker in file.read().split(b"\0")
        except OSError:
            return False


def _pids() -> Iterator[int]:
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def _leaving() -> Set[int]:
    """This user's processes that are just ending: they exist, but show no variables any more."""
    pids = set()
    for pid in _pids():
        with contextlib.suppress(OSError, IndexError, ValueError):
            with open("/proc/{}/stat".format(pid), encoding="utf-8", errors="replace") as file:
                flags = int(processes.stat_fields(file.read())[6])
            if flags & _EXITING and os.stat("/proc/{}".format(pid)).st_uid in (os.geteuid(), 0):
                pids.add(pid)
    return pids
