"""The commands and processes of this machine that a lab is made with."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from hosts.place import LABS, Place

SLOW = 60.0
"""Seconds after which a step that takes parts of one is given up."""


class LabError(Exception):
    """Something in making, using or ending a lab did not work."""


def command(*arguments: str, stdin: str = "") -> str:
    """Run a command to its end; what it printed."""
    done = subprocess.run(arguments, input=stdin, capture_output=True, text=True, timeout=SLOW, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def background(module: str, place: Place, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    """Start one of our own modules as a process of the lab that does not end with this one."""
    tests = str(Path(__file__).resolve().parents[1])
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, place.mark, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "PYTHONPATH": tests},
            cwd="/",
            start_new_session=True,
        )
    until(lambda: arguments_of(process.pid) or process.poll() is not None, f"{module} carries its mark")
    return process


def until(condition: Callable[[], object], what: str, seconds: float = SLOW, pause: float = 0.01) -> None:
    """Wait for a condition, which is looked at after each pause; say what did not happen."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise LabError(f"after {seconds:g} s still not: {what}")
        time.sleep(pause)


def arguments_of(pid: int) -> list[str]:
    """The arguments of a process; empty when it is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def lives(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def started(pid: int) -> str:
    """When a process began, which tells it from a later one with the same id; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19] if lives(pid) else ""
    except OSError:
        return ""


def pids() -> list[int]:
    """All processes of this machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def marked(place: Place) -> list[int]:
    """The lab's processes that carry its mark; what runs on a host dies with the host's first process."""
    return [pid for pid in pids() if place.mark in arguments_of(pid)]


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """One at a time on this machine: choosing addresses, adding and removing folders."""
    descriptor = os.open(LABS.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
