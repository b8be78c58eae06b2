"""What a cluster does for home, by name: `perform("files.read", {"path": ..., "offset": 0})`.

On this machine home calls it in its own process; elsewhere `agent.py` calls it for home. An operation is a function
with keyword arguments that JSON can hold, and at most one, called `data`, that is bytes. It gives back bytes, or what
JSON can hold. One that has a parameter `tell` may call it with what JSON can hold, while it works.

Home asks again when an answer was lost with its connection: doing an operation twice must be the same as doing it once.
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
from typing import Any, Callable, Dict, List, Optional, Set

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
"""The module of each group of operations; its dictionary `OPERATIONS` holds them by their whole names."""

Tell = Callable[[Any], None]

_USUAL = "see that it can be read and written"
_ROOM = "make room there (`srf clean` removes what nobody uses), or choose another root for this cluster"
_ADVICE = {errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM}


def perform(name: str, arguments: Dict[str, Any], tell: Tell = lambda _: None) -> Any:
    """Do one operation.

    Args:
        name: the module and the operation, "files.read".
        arguments: by name.
        tell: gets what the operation says while it works.

    Raises:
        OperationError: it could not.
    """
    operation = _find(name)
    given = {**arguments, "tell": tell} if "tell" in inspect.signature(operation).parameters else arguments
    try:
        return operation(**given)
    except OSError as error:
        path = str(error.filename or arguments.get("path", ""))
        raise OperationError(error.strerror or str(error), path, _ADVICE.get(error.errno or 0, _USUAL)) from error


def perform_all(requests: List[Dict[str, Any]], tell: Tell = lambda _: None) -> List[Any]:
    """Do several operations in order, and stop at the first that can't be done.

    Args:
        requests: a name and the arguments each: `{"name": "files.read", "arguments": {...}}`.
        tell: gets what the operations say.
    """
    return [perform(request["name"], request["arguments"], tell) for request in requests]


def _find(name: str) -> Callable[..., Any]:
    module = MODULES.get(name.partition(".")[0])
    found: Dict[str, Callable[..., Any]] = {}
    if module is not None:
        found = importlib.import_module("slurm_ray_flow.remote." + module).OPERATIONS
    if name not in found:
        raise OperationError("there is no operation {!r}".format(name))
    return found[name]


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


SUBMIT_SECONDS = 60.0
"""The head says that it lives within a second; on a machine under load, much later."""


def submit(root: str, run_id: str) -> None:
    """Start the head of a run, once: a head that was started stays the only one."""
    run = RunFiles(root, run_id)
    if find_event(run.recorded(), "allocated"):
        return
    command = ["/bin/sh", run.script, "--detach"]
    try:
        done = subprocess.run(
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
    if done.returncode:
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
        raise _not_started(run, said or "it ended with {}".format(done.returncode))


def _not_started(run: RunFiles, why: str) -> OperationError:
    return OperationError("the head did not start: {}".format(why), run.head_log, "read that log", "environment")


OPERATIONS: Dict[str, Any] = {
    "commands.run": run,
    "runs.submit": submit,
    "runs.alive": noted_alive,
}
