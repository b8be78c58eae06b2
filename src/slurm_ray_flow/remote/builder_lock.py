"""One builder at a time for each environment: a lock of the kernel's, free the moment its builder is dead."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

from slurm_ray_flow.remote.files import NO_LOCKS
from slurm_ray_flow.remote.uv_program import Tell


@contextlib.contextmanager
def locked(path: Path, tell: Tell) -> Iterator[Optional[int]]:
    """Hold the lock. Gives None where the file system has no locks: the rename alone keeps builds whole there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            _acquire(descriptor, tell)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            tell({"event": "line", "text": f"no locks on this file system ({error}): two builds may run at once"})
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, tell: Tell) -> None:
    if not _try_lock(descriptor):
        tell({"event": "waiting", **_holder(descriptor)})
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    record = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, record, 0)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(descriptor: int) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(os.pread(descriptor, 4096, 0))
        return {key: found[key] for key in ("pid", "host", "since")}
    except (ValueError, KeyError, TypeError):
        return {"pid": None, "host": None, "since": None}  # it has the lock, and has not yet written who it is


def remove_remains(environments: Path, ours: str) -> None:
    """Remove what killed builders left: folders beside whose lock nobody holds, or whose lock we hold ourselves."""
    for beside in environments.glob(".*.*"):
        digest = beside.name[1:].split(".")[0]
        if not beside.is_dir():
            continue
        if digest == ours:
            shutil.rmtree(beside, ignore_errors=True)
            continue
        with open(environments / f".{digest}.lock", "a") as file:
            if _try_lock(file.fileno()):
                shutil.rmtree(beside, ignore_errors=True)
