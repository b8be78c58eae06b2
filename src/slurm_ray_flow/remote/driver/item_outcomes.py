"""The bytes of an item's outcome: a pickled value, a pickled exception, or a text about an item without either."""

from __future__ import annotations

import io
import json
import os
import pickle
import site
import sys
import sysconfig
import traceback
from types import TracebackType
from typing import Any, List, NamedTuple, Optional, Tuple

from slurm_ray_flow.remote.driver import execution
from slurm_ray_flow.remote.driver.items import LARGEST
from slurm_ray_flow.remote.shared import failures, limits, pickling
from slurm_ray_flow.remote.shared.items import CRASHED, ERROR, VALUE
from slurm_ray_flow.remote.shared.protocol import TRY

LONGEST_GROUP, LONGEST_MESSAGE = 200, 300


class ItemOutcome(NamedTuple):
    """What an item's result says.

    Attributes:
        kind: `VALUE`, `ERROR` or `CRASHED`.
        data: the bytes for home.
        group: for failures: the exception's type, and where the user's code raised it.
        message: for failures: the exception in a line.
    """

    kind: str
    data: bytes
    group: str = ""
    message: str = ""


def of_value(value: Any) -> ItemOutcome:
    """The outcome of an item with a value; an error that says which part of it can't be pickled."""
    try:
        data = dumped(value)
    except BaseException as error:
        cause = "out_of_memory" if isinstance(error, MemoryError) else "result"
        text = execution.unwritten_message(value, error)
        return without_exception(ERROR, cause, text, "a {} that can't be pickled".format(type(value).__qualname__))
    if len(data) > LARGEST:
        text = "The value takes {}, and that of an item may take {}: write it to a file and return its path."
        text = text.format(limits.readable(len(data)), limits.readable(LARGEST))
        return without_exception(ERROR, "result", text, "a value that is too large")
    return ItemOutcome(VALUE, data)


def of_error(error: BaseException) -> ItemOutcome:
    """The outcome of an item that has raised an exception."""
    error.__traceback__ = execution.user_frames(error.__traceback__)
    group, message = group_of(error), message_of(error)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data = dumped({**failures.pack(error, execution.can_be_pickled), "traceback": text})
    except BaseException:
        data = b""
    if not 0 < len(data) <= LARGEST:
        data = dumped({"exception": RuntimeError(failures.describe(error)[:4000]), "traceback": text[:100_000]})
    return ItemOutcome(ERROR, data, group, message)


def without_exception(kind: str, cause: str, text: str, group: str) -> ItemOutcome:
    """The outcome of an item that failed without an exception of its own.

    Args:
        kind: `ERROR` or `CRASHED`.
        cause: one of the causes of a run's end.
        text: what happened, and after `TRY` what the user can try.
        group: what this failure has in common with others.
    """
    data = json.dumps({"cause": cause, "message": text}).encode()
    return ItemOutcome(kind, data, _encodable(group)[:LONGEST_GROUP], _one_line(text.partition(TRY)[0]))


def of_crash(cause: str, text: str, group: str) -> ItemOutcome:
    """The outcome of an item whose process has ended."""
    return without_exception(CRASHED, cause, text, group)


class _NotPlain(Exception):
    pass


class _PlainPickler(pickle.Pickler):
    """Pickles values of builtin types, with the same bytes as the general pickler, and twenty times as fast."""

    def reducer_override(self, _: Any) -> Any:
        raise _NotPlain


def dumped(value: Any) -> bytes:
    """The pickle of an outcome.

    Raises:
        Exception: as for `pickling.dump_outcome`.
    """
    file = io.BytesIO()
    try:
        _PlainPickler(file, 5).dump(value)
    except _NotPlain:
        file = io.BytesIO()
        pickling.dump_outcome(value, file, lambda _: True)
    return file.getvalue()


# ---- failures in words


def message_of(error: BaseException) -> str:
    """The exception in a line."""
    try:
        text = str(error)
    except Exception:
        text = ""
    return _one_line("{}: {}".format(_type_name(error), text) if text else _type_name(error))


def group_of(error: BaseException) -> str:
    """The exception's type, and the innermost frame of the user's code: equal for all items that fail in one way."""
    frame = _innermost(error.__traceback__)
    if frame is None:
        return _encodable(_type_name(error))[:LONGEST_GROUP]
    file, line, function = frame
    return _encodable("{} at {}:{} in {}".format(_type_name(error), _short(file), line, function))[:LONGEST_GROUP]


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else "{}.{}".format(kind.__module__, kind.__qualname__)


def _innermost(trace: Optional[TracebackType]) -> Optional[Tuple[str, int, str]]:
    """File, line and function of the innermost frame of the user's code; of the innermost one if none is the user's."""
    frames = []
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append((code.co_filename, trace.tb_lineno, code.co_name))
        trace = trace.tb_next
    own = [frame for frame in frames if _is_of_user(frame[0])]
    return (own or frames or [None])[-1]  # type: ignore[list-item]


def _is_of_user(file: str) -> bool:
    return not file.startswith(("<frozen ", *_library_folders()))


def _library_folders() -> List[str]:
    """The folders of installed packages, of Python itself and of this package."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages() if hasattr(site, "getsitepackages") else ())
    return [os.path.join(folder, "") for folder in (*folders, execution.OWN_FOLDER) if folder]


def _short(file: str) -> str:
    """A file below the working directory or an entry of `sys.path` relative to it, else its name."""
    for folder in (os.getcwd(), *sys.path):
        if folder and file.startswith(os.path.join(folder, "")):
            return os.path.relpath(file, folder)
    return os.path.basename(file)


def _one_line(text: str) -> str:
    return _encodable(" ".join(text.split()))[:LONGEST_MESSAGE]


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
