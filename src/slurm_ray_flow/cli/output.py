"""How the command writes: tables and words for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.plain import plain

Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Write JSON.")]


def print_json(value: Any) -> None:
    """Write one JSON document."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201 - this is the command's output


def print_text(text: str) -> None:
    """Write a line for people."""
    print(plain(text))  # noqa: T201 - this is the command's output


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Write a table for people; plain columns where there is no terminal."""
    table = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(plain, row))
    Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 200).print(table)


def print_error(error: SlurmRayFlowError) -> None:
    """Write what went wrong, where, and what to try."""
    console = Console(stderr=True, highlight=False)
    console.print(f"{type(error).__name__}: ", style="bold red", end="", markup=False)
    console.print(str(error), soft_wrap=True, markup=False)


def print_exception(error: BaseException, *, frames: bool = False) -> None:
    """Write an exception of the user's code, with its notes: the last of them is the traceback on the cluster.

    Args:
        frames: also write where it was raised in this process.
    """
    lines = traceback.format_exception(error.with_traceback(error.__traceback__ if frames else None))
    sys.stderr.write(plain("".join(lines)))


def describe_error(error: BaseException) -> dict[str, Any]:
    """An error for scripts."""
    if isinstance(error, SlurmRayFlowError):
        return {
            "type": type(error).__name__,
            "cause": getattr(error, "cause", None),
            "message": error.what,
            "where": error.where,
            "try": error.advice,
        }
    return {"type": type(error).__name__, "cause": "user_code", "message": str(error)}


def as_json(value: Any) -> Any:
    """The value itself where JSON can hold it, else its repr."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return repr(value)
    return value
