"""The operations of a cluster by their names: `perform("files.read", {"path": ..., "offset": 0})`.

For this machine home calls `perform` in its own process; on a cluster `agent.py` does. An operation is a function with
keyword arguments that JSON can represent, besides one that may be bytes, called `data`. It returns bytes or a value for
JSON. An operation with a parameter `tell` may call it with values for JSON while it works: reports for home.

Home repeats an operation whose answer was lost with the connection: every operation must be idempotent.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import inspect
import os
import signal
import subprocess
import threading
from typing import Any, Callable, Dict, List, Set

from slurm_ray_flow.remote.shared import processes
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.liveness import noted_alive
from slurm_ray_flow.remote.shared.protocol import OperationError, find_event

MODULES = {
    "clean_up": "upkeep.clean_up",
    "commands": "agent.operations",
    "container": "shared.container",
    "environments": "environment.environments",
    "files": "shared.files",
    "items": "shared.items",
    "machines": "shared.machine",
    "probe": "agent.probe",
    "pythons": "environment.pythons",
    "queue": "lock.queue",
    "runs": "agent.operations",
    "scheduler": "scheduler.commands",
    "snapshots": "agent.snapshots",
    "survey": "agent.probe",
    "uv_tool": "environment.uv_tool",
    "warm": "scheduler.warm",
    "workplace": "shared.working_directory",
}
"""The module of each group of operations; its dictionary `OPERATIONS` has them by their full names."""

Tell = Callable[[Any], None]

_DEFAULT_ADVICE = "see that it can be read and written"
_DISK_FULL_ADVICE = "make room there (`srf clean` removes what nobody uses), or choose another root for this cluster"
_ADVICE_BY_ERRNO = {errno.ENOSPC: _DISK_FULL_ADVICE, errno.EDQUOT: _DISK_FULL_ADVICE}


def perform(name: str, arguments: Dict[str, Any], tell: Tell = lambda _: None) -> Any:
    """Do one operation.

    Args:
        name: group and operation, "files.read".
        arguments: the keyword arguments.
        tell: gets the operation's reports.

    Raises:
        OperationError: the operation failed.
    """
    operation = _find(name)
    keywords = {**arguments, "tell": tell} if "tell" in inspect.signature(operation).parameters else arguments
    try:
        return operation(**keywords)
    except OSError as error:
        path = str(error.filename or arguments.get("path", ""))
        advice = _ADVICE_BY_ERRNO.get(error.errno or 0, _DEFAULT_ADVICE)
        raise OperationError(error.strerror or str(error), path, advice) from error


def perform_all(requests: List[Dict[str, Any]], tell: Tell = lambda _: None) -> List[Any]:
    """Do several operations in order, up to the first that fails.

    Args:
        requests: names and arguments: `{"name": "files.read", "arguments": {...}}`.
        tell: gets the operations' reports.
    """
    return [perform(request["name"], request["arguments"], tell) for request in requests]


def _find(name: str) -> Callable[..., Any]:
    module = MODULES.get(name.partition(".")[0])
    operations: Dict[str, Callable[..., Any]] = {}
    if module is not None:
        operations = importlib.import_module("slurm_ray_flow.remote." + module).OPERATIONS
    if name not in operations:
        raise OperationError("there is no operation {!r}".format(name))
    return operations[name]


_running: Set["subprocess.Popen[bytes]"] = set()
_lock = threading.Lock()


def run(argv: List[str], timeout: float, data: bytes = b"") -> Dict[str, Any]:
    """Run a command to its end; an exit code other than 0 is no error. Files that it makes are private.

    Args:
        argv: program and arguments.
        timeout: seconds after which the command and its process group are killed.
        data: its stdin.
    """
    pipe = subprocess.PIPE
    try:
        with _lock:
            process = subprocess.Popen(_umasked(argv), stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
            _running.add(process)
    except OSError as error:
        raise OperationError("{} can't be started: {}".format(argv[0], error.strerror), "", "install it") from error
    try:
        return _result_of(process, argv, timeout, data)
    finally:
        _running.discard(process)


def _umasked(argv: List[str]) -> List[str]:
    # Setting the umask between fork and exec (`preexec_fn`) is not safe with threads.
    return ["/bin/sh", "-c", 'umask 077; exec "$@"', "sh", *argv]


def _result_of(process: Any, argv: List[str], timeout: float, data: bytes) -> Dict[str, Any]:
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
    """Kill the commands that still run, with their process groups."""
    with _lock:
        for process in list(_running):
            _kill(process)


def _kill(process: Any) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


SUBMIT_SECONDS = 60.0
"""Seconds for the head to record that it lives: it takes less than one, but much more on a machine under load."""


def submit(root: str, run_id: str) -> None:
    """Start the head of a run, unless it has been started already."""
    run = RunFiles(root, run_id)
    if find_event(run.recorded(), "allocated"):
        return
    command = ["/bin/sh", run.script, "--detach"]
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=SUBMIT_SECONDS,
            env=processes.inherited(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise _not_started(run, "it did not say within {:g} s that it lives".format(SUBMIT_SECONDS)) from None
    if result.returncode:
        output = (result.stderr or result.stdout).decode("utf-8", "replace").strip()
        raise _not_started(run, output or "it ended with {}".format(result.returncode))


def _not_started(run: RunFiles, why: str) -> OperationError:
    return OperationError("the head did not start: {}".format(why), run.head_log, "read that log", "environment")


OPERATIONS: Dict[str, Any] = {
    "commands.run": run,
    "runs.submit": submit,
    "runs.alive": noted_alive,
}
