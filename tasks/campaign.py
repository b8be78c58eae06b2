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
MOST_ROWS = 1000
"""So many values are in a table."""


@dataclasses.dataclass(frozen=True)
class CampaignValue:
    """The result of the call with one value.

    Attributes:
        value: the argument of the call.
        run_id: the call's run; "" for a call that never became a run.
        result: the value that the function returned.
        error: the exception of a call that failed.
    """

    value: Any
    run_id: str
    result: Any = None
    error: BaseException | None = None


def find_function(name: str, directory: str) -> Any:
    """Import a decorated function by name.

    Args:
        name: the function's module and name, "train:train".
        directory: the folder of the function's project; "" for the working directory.

    Raises:
        OptionError: there is no such function, or it is not decorated.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise OptionError(f"{name!r} does not name a function", advice="write module:function, such as train:train")
    if directory:
        _enter_project(directory)
    loaded: Any = _import_module(module)
    for part in function.split("."):
        loaded = getattr(loaded, part, None)
    if not hasattr(loaded, "map"):
        what = "is not decorated with @slurm_ray_flow" if callable(loaded) else "is not there"
        raise OptionError(f"{function} {what}", where=name, advice="see docs/prefect.md, Schedules")
    return loaded


def _enter_project(directory: str) -> None:
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise OptionError("there is no such folder", where=directory, advice="the worker's machine must have it")
    sys.path.insert(0, str(folder.absolute()))
    os.chdir(folder)


def _import_module(module: str) -> Any:
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

    `tell` gets each call when it and all calls before it have ended. An interruption of the wait (Ctrl-C, a cancel in
    Prefect) ends the calls that are under way.
    """
    typed: Any = getattr(function, "typed", lambda value: ((value,), {}))  # a form gave the values as text or JSON
    handles = function.map([typed(value)[0][0] for value in values], max_parallel=max_parallel)
    try:
        ended = []
        for handle, value in zip(handles, values, strict=True):
            ended.append(_awaited_result(handle.result, value, handle))
            tell(ended[-1])
        return ended
    except BaseException:
        with contextlib.suppress(Exception):  # the interruption counts
            handles.cancel()
        raise


def call_in_pilots(
    function: Any, values: Sequence[Any], max_pilots: int, key: str, tell: Callable[[str], object] = lambda _: None
) -> list[CampaignValue]:
    """Call a function for each value as items of one campaign, but for those whose key an earlier one has a value of.

    An interruption of the wait ends the campaign.

    Args:
        key: the name of an argument; "" runs all of them.
        tell: gets a line about the campaign that has begun.
    """
    typed: Any = getattr(function, "typed", lambda value: ((value,), {}))
    made = function.campaign_of_new([typed(value)[0][0] for value in values], key=key, max_pilots=max_pilots)
    known = f"{made.known} of {len(values)} values are those of earlier campaigns"
    tell(known if made.campaign is None else f"{known}; `srf grid stat {made.campaign.id[:8]}` shows the others")
    try:
        return [
            CampaignValue(value, "", error=result)
            if isinstance(result, BaseException)
            else CampaignValue(value, "", result=result)
            for result, value in zip(made.results(return_exceptions=True), values, strict=True)
        ]
    except BaseException:
        with contextlib.suppress(Exception):  # the interruption counts
            made.cancel()
        raise


def _awaited_result(result: Callable[[], Any], value: Any, handle: Any) -> CampaignValue:
    try:
        value_of_call = result()
    except Exception as error:
        return CampaignValue(value, _run_id(handle), error=error)
    return CampaignValue(value, _run_id(handle), result=value_of_call)


def _run_id(handle: Any) -> str:
    return str(getattr(handle, "run_id", None) or "")


def line_about(call: CampaignValue) -> tuple[int, str]:
    """The log level and the log line for one value."""
    text = f"{plain(_short(call.value))}: {plain(_outcome(call))}" + (
        f" (run {call.run_id[:8]})" if call.run_id else ""
    )
    return (logging.WARNING, text) if call.error else (logging.INFO, text)


def as_table(calls: Sequence[CampaignValue], page: Callable[[str], str]) -> str:
    """The table of all results in markdown, failures first where it does not have all; `page`: a run's page."""
    more = len(calls) - MOST_ROWS
    if more > 0:
        calls = sorted(calls, key=lambda call: call.error is None)[:MOST_ROWS]
    rows = [
        f"| {cell(_short(call.value))} | {'failed' if call.error else 'done'} "
        f"| {cell(_outcome(call))} | {_linked(call, page)} |"
        for call in calls
    ]
    rest = [f"\nand {more} more"] if more > 0 else []
    return "\n".join(["| value | state | result | run |", "|---|---|---|---|", *rows, *rest])


def _outcome(call: CampaignValue) -> str:
    if call.error is None:
        return _short(call.result)
    return f"{type(call.error).__name__}: {getattr(call.error, 'what', call.error)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def _linked(call: CampaignValue, page: Callable[[str], str]) -> str:
    url = page(call.run_id) if call.run_id else ""
    return f"[{call.run_id[:8]}]({url})" if url else call.run_id[:8]
