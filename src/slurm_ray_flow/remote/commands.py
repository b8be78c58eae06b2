"""Runs a command for home, and ends it when home has gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from typing import Any, Dict, List, Optional, Set

from slurm_ray_flow.remote.errors import OperationError

_running: Set["subprocess.Popen[bytes]"] = set()
_lock = threading.Lock()


def run(argv: List[str], timeout: float, data: bytes = b"", folder: Optional[str] = None) -> Dict[str, Any]:
    """Run a command to its end; one that fails is an answer, not an error. What it writes is its user's alone.

    Args:
        argv: program and arguments.
        timeout: seconds after which it, and what it started, is killed.
        data: what it reads.
        folder: its working folder.
    """
    pipe = subprocess.PIPE
    try:
        with _lock:
            process = subprocess.Popen(
                _umasked(argv), stdin=pipe, stdout=pipe, stderr=pipe, cwd=folder, start_new_session=True
            )
            _running.add(process)
    except OSError as error:
        raise OperationError(
            "{} can't be started: {}".format(argv[0], error.strerror), folder or "", "install it"
        ) from error
    try:
        return _ended(process, argv, timeout, data)
    finally:
        _running.discard(process)


def _umasked(argv: List[str]) -> List[str]:
    # Setting the umask between fork and exec (`preexec_fn`) is not safe with threads.
    return ["/bin/sh", "-c", 'umask 077; exec "$@"', "sh", *argv]


def _ended(process: Any, argv: List[str], timeout: float, data: bytes) -> Dict[str, Any]:
    try:
        out, err = process.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        _kill(process)
        process.communicate()
        raise OperationError(
            "{} did not end within {:g} s and was killed".format(argv[0], timeout), "", "a slow disk may need more time"
        ) from None
    return {
        "exit_code": process.returncode,
        "stdout": out.decode(errors="surrogateescape"),
        "stderr": err.decode(errors="surrogateescape"),
    }


def end_all() -> None:
    """End what still runs, with all that it started."""
    with _lock:
        for process in list(_running):
            _kill(process)


def _kill(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


OPERATIONS: Dict[str, Any] = {"run": run}
