"""One call in the driver: its payloads are read, its function runs, its outcome is written, its end is reported."""

from __future__ import annotations

import asyncio
import errno
import functools
import inspect
import io
import os
import sys
import traceback
from types import TracebackType
from typing import Any, Callable, Dict, Optional, Set, Tuple, cast

from slurm_ray_flow.remote.shared import failures, payload, pickling, rebuilding
from slurm_ray_flow.remote.shared.events import RunFiles, tail
from slurm_ray_flow.remote.shared.pickling import resolve_function
from slurm_ray_flow.remote.shared.protocol import TRY

Report = Dict[str, Any]
MOST_MODULES = 100
"""The most modules of a value's types that are reported."""
_LOSS_ERRORS = {
    "ActorDiedError", "ActorUnavailableError", "LocalRayletDiedError", "NodeDiedError", "ObjectFetchTimedOutError",
    "ObjectLostError", "ObjectReconstructionFailedError", "ObjectReconstructionFailedLineageEvictedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError", "OwnerDiedError", "RaySystemError", "RpcError",
    "TaskUnschedulableError", "WorkerCrashedError",
}  # fmt: skip
"""The exceptions of Ray about the loss of its own processes."""
OWN_FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "")


def execute(run: RunFiles) -> Report:
    """Run the call of `run`, write outcome.dill, and return the fields of its `call_ended`."""
    try:
        function, arguments = read_call(run)
    except SystemExit as error:
        return {**failed(run, error, "environment"), "message": import_exit_message(error, run.log)}
    except Exception as error:
        return failed(run, error, "environment")
    try:
        value = completed(function(*arguments["args"], **arguments["kwargs"]))
    except BaseException as error:
        return failed(run, error, _cause(error))
    return succeeded(run, value)


def read_call(run: RunFiles) -> Tuple[Callable[..., Any], Dict[str, Any]]:
    """The function of a call, and its arguments: `{"args": [...], "kwargs": {...}}`. Imports the user's modules."""
    function = payload.read(run.function, pickling.load)
    called = _resolve(function[1], function[2]) if function[0] == "reference" else function[1]
    rebuilding.values_are_in(run.values)
    return called, payload.read(run.arguments, pickling.load)


def import_exit_message(error: SystemExit, log: str) -> str:
    """What to say of a module that ended the process, with the end of the log."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    message = "A module of the function ended the process while it was imported ({}).".format(_last_line(error))
    return "{}\n{}".format(message, tail(log, 2000)).strip()


def _resolve(module: str, qualified_name: str) -> Callable[..., Any]:
    function: Any = resolve_function(module, qualified_name)
    while type(function).__module__.startswith(("prefect.", "slurm_ray_flow.")) and hasattr(function, "local"):
        function = function.local
    return cast(Callable[..., Any], function)


def completed(result: Any) -> Any:
    """The value of a call; that of a coroutine or another awaitable when it has ended."""
    if inspect.iscoroutine(result):
        return asyncio.run(result)
    return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


def succeeded(run: RunFiles, value: Any) -> Report:
    """Write the value as the run's outcome; returns the fields of its `call_ended`."""
    try:
        modules: Set[str] = set()
        dump = functools.partial(pickling.dump_outcome, modules=modules)
        digest, size = payload.write(run.outcome, {"value": value}, dump, durable=True)
    except BaseException as error:
        cause = "out_of_memory" if isinstance(error, MemoryError) else "result"
        return {"outcome": None, "cause": cause, "message": unwritten_message(value, error)}
    report: Report = {"outcome": "value", "cause": None, "sha256": digest, "size": size}
    return {**report, "modules": sorted(modules)[:MOST_MODULES]} if modules else report


def unwritten_message(value: Any, error: BaseException) -> str:
    """What to say of a value that can't be written: its type, and the part of it that can't be pickled."""
    kind = "{}.{}".format(type(value).__module__, type(value).__qualname__)
    if _is_disk_error(error):
        return "The value, a {}, was not written: {}".format(kind, error)
    part = pickling.offending_part(value)
    reason = " because of `{}`".format(part) if part else ""
    return "The value, a {}, can't be pickled{}: {}: {}".format(kind, reason, type(error).__name__, error)[:4000]


def _is_disk_error(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def failed(run: RunFiles, error: BaseException, cause: str) -> Report:
    """Write an exception as the run's outcome; returns the fields of its `call_ended`."""
    error.__traceback__ = user_frames(error.__traceback__)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    report: Report = {"outcome": "exception", "cause": cause, "message": _last_line(error)}
    if type(error).__module__ == "ray.exceptions" and type(error).__name__ in _LOSS_ERRORS:
        report["lost_processes"] = True
    if isinstance(error, SystemExit):
        report["exit_code"] = _exit_code(error)
        report["message"] = (
            "The function called sys.exit({}) before it returned.{}have it return, or raise what is wrong".format(
                _readable_exit_code(error.code), TRY
            )
        )
    try:
        packed = {**failures.pack(error, can_be_pickled), "traceback": text}
        report["sha256"], report["size"] = payload.write(run.outcome, packed, pickling.dump_outcome, durable=True)
    except BaseException as second:
        report.update(outcome=None, cause="result" if cause == "user_code" else cause)
        report["message"] = "{}; its exception was not written: {}".format(_last_line(error), second)
    return report


def user_frames(trace: Optional[TracebackType]) -> Optional[TracebackType]:
    """The traceback from the user's first frame on; the whole one if there is no such frame."""
    user_trace = trace
    while user_trace is not None and user_trace.tb_frame.f_code.co_filename.startswith(OWN_FOLDER):
        user_trace = user_trace.tb_next
    return user_trace or trace


def _last_line(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(type(error), error)).strip()[:4000]
    except Exception:
        return type(error).__qualname__


def _cause(error: BaseException) -> str:
    kind = type(error)
    if isinstance(error, MemoryError) or (kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("ray.")):
        return "out_of_memory"
    return "crashed" if isinstance(error, SystemExit) else "user_code"


def _readable_exit_code(code: Any) -> str:
    if code is None:
        return ""
    return repr(code)[:4000] if isinstance(code, (int, str)) else type(code).__qualname__


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    return error.code if isinstance(error.code, int) else 1


def can_be_pickled(value: Any) -> bool:
    """Whether a value can go home, and is of the same type there."""
    file = io.BytesIO()
    try:
        pickling.dump_outcome(value, file, lambda _: True)
        file.seek(0)
        return type(pickling.load(file, [])).__qualname__ == type(value).__qualname__
    except Exception:
        return False
