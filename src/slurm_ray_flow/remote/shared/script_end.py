"""The end of a call: what the end of a script waits for is waited for, and what a call leaves behind is told."""

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

LOOK_SECONDS = 0.1
FIRST_TOLD, SELDOM_TOLD = 1.0, 60.0
"""What is waited for is said in the log after so many seconds, and then after twice as many, up to this."""
PATIENCE = 2.0
"""So long processes may take that end by themselves when the function's own has ended, such as a resource tracker."""
NAMED = 5


def end_as_a_script(tell: Callable[[str], None]) -> None:
    """In the driver: wait for threads, for executors and their queues, and call what is registered with atexit.

    Args:
        tell: is told what is waited for, again when that has changed.
    """
    with contextlib.suppress(RuntimeError):  # no more threads are to be had
        threading.Thread(target=_watch, args=(tell,), daemon=True).start()
    for step in (threading._shutdown, atexit._run_exitfuncs):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            traceback.print_exc()


def flush_buffers() -> None:
    """Write out what Python and C hold back, and so does C++, whose streams are C's unless a program parts them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).fflush(None)


def _watch(tell: Callable[[str], None]) -> None:
    told, pause, due = "", FIRST_TOLD, time.monotonic() + FIRST_TOLD
    while True:
        found = _waited_for()
        if found != told:
            tell(found)
            told = found
        if time.monotonic() >= due:
            os.write(2, "slurm-ray-flow: the function has ended; waits for {}\n".format(found or "atexit").encode())
            pause = min(pause * 2, SELDOM_TOLD)
            due = time.monotonic() + pause
        time.sleep(LOOK_SECONDS)


def _waited_for() -> str:
    main = threading.main_thread()
    threads = [one.name for one in threading.enumerate() if not one.daemon and one is not main]
    known: Iterable[Any] = getattr(sys.modules.get("multiprocessing.process"), "_children", ())
    children = [one.name for one in list(known) if not one.daemon and processes.is_alive(one.pid)]
    return _counted(threads, "thread", "threads") or _counted(children, "process", "processes")


def _counted(names: List[str], one: str, many: str) -> str:
    more = ["{} more".format(len(names) - NAMED)] if len(names) > NAMED else []
    return "{} {}: {}".format(len(names), one if len(names) == 1 else many, ", ".join(names[:NAMED] + more)) * any(
        names
    )


def tell_of_left(log: str, spared: List[int]) -> None:
    """In the head: say in the log which processes the call has left behind, which are ended now.

    Args:
        log: the run's log.
        spared: children that stay, with everything below them.
    """
    began = time.monotonic()
    while True:
        left = processes.descendants(os.getpid(), spared)
        helpers = set(filter(_is_helper, left))
        if not left or time.monotonic() > began + (PATIENCE if helpers else PATIENCE / 4):
            break
        time.sleep(0.01)
    stay = [pid for pid in sorted(left - helpers) if processes.is_alive(pid)]  # not what ended a moment ago
    if stay:
        names = ["{} ({})".format(processes.name(pid), pid) for pid in stay]
        say(log, "the call has left processes behind, which are ended: " + _counted(names, "process", "processes"))


def _is_helper(pid: int) -> bool:
    """Whether it is one of multiprocessing's or joblib's own, which tidies up and ends when the call's has ended."""
    try:
        with open("/proc/{}/cmdline".format(pid), "rb") as file:
            command = file.read()
    except OSError:
        return False
    return any(name in command for name in (b"resource_tracker", b"multiprocessing.forkserver"))


def say(log: str, text: str) -> None:
    """In the head: add a line of ours to the run's log."""
    with (
        contextlib.suppress(OSError),
        open(os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600), "rb+", 0) as file,
    ):
        broken = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) is not None and file.read(1) != b"\n"
        file.write("{}slurm-ray-flow: {}\n".format("\n" * broken, text).encode("utf-8", "surrogateescape"))
