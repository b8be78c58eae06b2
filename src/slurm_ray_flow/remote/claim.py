"""A run has one head, however often it is started: home starts it again when the answer to the first start was lost."""

from __future__ import annotations

import fcntl
import os
import time

from slurm_ray_flow.remote.events import Run
from slurm_ray_flow.remote.files import NO_LOCKS
from slurm_ray_flow.remote.protocol import find_event

PATIENCE = 30.0
_PAUSE = 0.02


def claim(run: Run) -> bool:
    """Make this process the run's head, for as long as it lives. False if the run has, or had, another one.

    Waits until that other one has recorded that it lives, so that whoever started this one can rely on the events.

    Raises:
        TimeoutError: another process claims the run and does not say that it lives.
    """
    path = os.path.join(run.folder, "claim")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + PATIENCE
    while True:
        free = _lock(descriptor, path)
        if find_event(run.recorded(), "allocated"):
            return False
        if free:
            return True
        if time.monotonic() > deadline:
            raise TimeoutError("another head claims the run and does not start; see head.log")
        time.sleep(_PAUSE)


def _lock(descriptor: int, path: str) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NO_LOCKS and _is_first(path + "ed")
    return True


def _is_first(path: str) -> bool:
    """Whether this process makes a file that nobody has made: it stands for a lock where there is none."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    return True
