"""The end of a call: it waits for all that the end of a script waits for, and reports processes that remain."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
import time
import traceback
from typing import Any, Callable, Iterable, List

from slurm_ray_flow.remote.shared import processes

POLL_SECONDS = 0.1
FIRST_REPORT, LONGEST_REPORT_PAUSE = 1.0, 60.0
"""Seconds until the log's first line about a wait; the pause before the next lines doubles up to the second number."""
HELPER_SECONDS = 2.0
"""Seconds for helper processes, such as a resource tracker, which end by themselves after the function's process."""
NAMES_SHOWN = 5


def end_as_a_script(tell: Callable[[str], None]) -> None:
    """In the driver: wait for threads, executors and their queues, and call the functions of `atexit`.

    Args:
        tell: gets a description of the threads or processes that it waits for, whenever it changes.
    """
    with contextlib.suppress(RuntimeError):  # no more threads are to be had
        threading.Thread(target=_report_waits, args=(tell,), daemon=True).start()
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            traceback.print_exc()


def flush_buffers() -> None:
    """Flush the output buffers of Python and C; by default, C++ uses those of C."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).fflush(None)


def _report_waits(tell: Callable[[str], None]) -> None:
    reported, pause, due = "", FIRST_REPORT, time.monotonic() + FIRST_REPORT
    while True:
        waits_for = _waits_for()
        if waits_for != reported:
            tell(waits_for)
            reported = waits_for
        if time.monotonic() >= due:
            os.write(2, "slurm-ray-flow: the function has ended; waits for {}\n".format(waits_for or "atexit").encode())
            pause = min(pause * 2, LONGEST_REPORT_PAUSE)
            due = time.monotonic() + pause
        time.sleep(POLL_SECONDS)


def _waits_for() -> str:
    main = threading.main_thread()
    threads = [item.name for item in threading.enumerate() if not item.daemon and item is not main]
    children: Iterable[Any] = getattr(sys.modules.get("multiprocessing.process"), "_children", ())
    names = [item.name for item in list(children) if not item.daemon and processes.is_alive(item.pid)]
    return _counted(threads, "thread", "threads") or _counted(names, "process", "processes")


def _counted(names: List[str], singular: str, plural: str) -> str:
    if not names:
        return ""
    rest = ["{} more".format(len(names) - NAMES_SHOWN)] if len(names) > NAMES_SHOWN else []
    return "{} {}: {}".format(
        len(names), singular if len(names) == 1 else plural, ", ".join(names[:NAMES_SHOWN] + rest)
    )


def report_survivors(log: str, spared: List[int]) -> None:
    """In the head: write to the log which processes the call has left behind; the head ends them next.

    Args:
        log: the run's log.
        spared: children that don't belong to the call, with their descendants.
    """
    began = time.monotonic()
    while True:
        survivors = processes.descendants(os.getpid(), spared)
        helpers = set(filter(_is_helper, survivors))
        if not survivors or time.monotonic() > began + (HELPER_SECONDS if helpers else HELPER_SECONDS / 4):
            break
        time.sleep(0.01)
    remaining = [pid for pid in sorted(survivors - helpers) if processes.is_alive(pid)]
    if remaining:
        names = ["{} ({})".format(processes.name(pid), pid) for pid in remaining]
        say(log, "the call has left processes behind, which are ended: " + _counted(names, "process", "processes"))


def _is_helper(pid: int) -> bool:
    """Whether a process is a helper of multiprocessing or joblib, which cleans up and ends after the call's process."""
    try:
        with open("/proc/{}/cmdline".format(pid), "rb") as file:
            command = file.read()
    except OSError:
        return False
    return any(name in command for name in (b"resource_tracker", b"multiprocessing.forkserver"))


def say(log: str, text: str) -> None:
    """In the head: add a line of this package to the run's log."""
    with (
        contextlib.suppress(OSError),
        open(os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "rb+", 0) as file,
    ):
        broken = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n"
        file.write("{}slurm-ray-flow: {}\n".format("\n" * broken, text).encode("utf-8", "surrogateescape"))
