"""A function over many values: the search for it by name, one call for each value, and the results."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slurm_ray_flow.core.artifacts import cell
from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.text import plain

LONGEST_VALUE = 60


@dataclasses.dataclass(frozen=True)
class CampaignValue:
    """The result of the call with one value.

    Attributes:
        value: what the function was called with.
        run_id: its run; "" where it came to none.
        result: what the function gave back.
        error: how it failed; None where it did not.
    """

    value: Any
    run_id: str
    result: Any = None
    error: BaseException | None = None


def find_function(name: str, directory: str) -> Any:
    """Import a decorated function by name.

    Args:
        name: its module and name, "train:train".
        directory: the folder of its project, where its module lies and it is launched from; "" for where this runs.

    Raises:
        OptionError: there is none, or it is not decorated.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise OptionError(f"{name!r} does not name a function", advice="write module:function, such as train:train")
    if directory:
        _enter(directory)
    loaded: Any = _imported(module)
    for part in function.split("."):
        loaded = getattr(loaded, part, None)
    if not hasattr(loaded, "map"):
        what = "is not decorated with @slurm_ray_flow" if callable(loaded) else "is not there"
        raise OptionError(f"{function} {what}", where=name, advice="see docs/prefect.md, Schedules")
    return loaded


def _enter(directory: str) -> None:
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise OptionError("there is no such folder", where=directory, advice="the worker's machine must have it")
    sys.path.insert(0, str(folder.absolute()))
    os.chdir(folder)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        where = f"{Path.cwd()}, and the worker's packages"
        raise OptionError(
            f"there is no module {module!r}", where=where, advice="name its folder: directory=..."
        ) from None


def call_for_each(
    function: Any, values: Sequence[Any], max_parallel: int, tell: Callable[[CampaignValue], object] = lambda _: None
) -> list[CampaignValue]:
    """Call a function for each value, at most `max_parallel` at a time; a failed call does not stop the others.

    Each is told when it, and all before it, have ended. An interruption of the wait (Ctrl-C, a cancel in Prefect) ends
    those that are under way.
    """
    typed: Any = getattr(function, "typed", lambda value: ((value,), {}))  # they come from a form
    handles = function.map([typed(value)[0][0] for value in values], max_parallel=max_parallel)
    try:
        ended = []
        for handle, value in zip(handles, values, strict=True):
            ended.append(_ended(handle.result, value, handle))
            tell(ended[-1])
        return ended
    except BaseException:
        with contextlib.suppress(Exception):  # what interrupted it counts
            handles.cancel()
        raise


def _ended(result: Callable[[], Any], value: Any, handle: Any) -> CampaignValue:
    try:
        given = result()
    except Exception as error:
        return CampaignValue(value, _run_id(handle), error=error)
    return CampaignValue(value, _run_id(handle), result=given)


def _run_id(handle: Any) -> str:
    return str(getattr(handle, "run_id", None) or "")


def line_about(call: CampaignValue) -> tuple[int, str]:
    """The log level and the log line for one value."""
    text = f"{plain(_short(call.value))}: {plain(_outcome(call))}" + (
        f" (run {call.run_id[:8]})" if call.run_id else ""
    )
    return (logging.WARNING, text) if call.error else (logging.INFO, text)


def as_table(calls: Sequence[CampaignValue], page: Callable[[str], str]) -> str:
    """The table of all results in markdown; `page` gives the address of a run's page."""
    rows = [
        f"| {cell(_short(call.value))} | {'failed' if call.error else 'done'} "
        f"| {cell(_outcome(call))} | {_linked(call, page)} |"
        for call in calls
    ]
    return "\n".join(["| value | state | result | run |", "|---|---|---|---|", *rows])


def _outcome(call: CampaignValue) -> str:
    if call.error is None:
        return _short(call.result)
    return f"{type(call.error).__name__}: {getattr(call.error, 'what', call.error)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _linked(one: CampaignValue, page: Callable[[str], str]) -> str:
    url = page(one.run_id) if one.run_id else ""
    return f"[{one.run_id[:8]}]({url})" if url else one.run_id[:8]
