"""The output of the command: tables and words for people, JSON for scripts.

rich is imported where something is drawn: much of what the command does needs none of it.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Write JSON.")]
Switch = Parameter(negative="", show_default=False)
Rows = Sequence[Sequence[str]]
Styles = Mapping[str, str]
"""The style of a cell by its first word: "failed" is red."""

STATES: Styles = {
    **dict.fromkeys(("ok", "succeeded", "free", "up", "running"), "green"),
    **dict.fromkeys(("failed", "lost", "away"), "red"),
    **dict.fromkeys(("warning", "cancelled", "waiting", "taken", "preparing", "starting", "warm"), "yellow"),
    **dict.fromkeys(("not",), "dim"),
}
PLAIN_WIDTH = 200
"""The width of lines where there is no terminal."""


def print_json(value: Any, *, compact: bool = False) -> None:
    """Write one JSON document; a compact one stands in one line, for streams of them."""
    print(json.dumps(value, indent=None if compact else 2, default=str))  # noqa: T201 - this is the command's output


def print_text(text: str) -> None:
    """Write a line for people."""
    print(plain(text))  # noqa: T201 - this is the command's output


def tell(text: str) -> None:
    """Write a line of progress, beside the output."""
    sys.stderr.write(plain(text) + "\n")


def print_table(columns: Sequence[str], rows: Rows, styles: Styles | None = None) -> None:
    """Write a table for people; plain columns where there is no terminal, and no colour there or with NO_COLOR."""
    text = "" if sys.stdout.isatty() else _plain_table(columns, rows)
    if text:
        sys.stdout.write(text)
    else:
        console().print(table(columns, rows, styles))


def _plain_table(columns: Sequence[str], rows: Rows) -> str:
    """The table that rich would write without a terminal, made without its import; "" where a cell needs rich."""
    cells = [[plain(cell) for cell in row] for row in (columns, *rows)]
    if not all(cell.isascii() and cell.isprintable() for row in cells for cell in row):
        return ""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if len(widths) == 1 or sum(widths) + 2 * len(widths) > PLAIN_WIDTH:
        return ""
    return "".join("  ".join(map(str.ljust, row, widths)) + "\n" for row in cells)


def show_progress() -> None:
    """Show launch events, so that a wait for an unreachable host is not silent."""
    from slurm_ray_flow.core.launch_events import stream_to
    from slurm_ray_flow.interface.progress import terminal_display

    stream_to(terminal_display())


def console() -> Console:
    """The console for tables."""
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def table(columns: Sequence[str], rows: Rows, styles: Styles | None = None) -> Table:
    """A table for the console."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(plain(cell), _style(cell, styles)) for cell in row))
    return drawn


def _style(cell: str, styles: Styles | None) -> str:
    word = cell.partition(" ")[0].rstrip(",:;")
    return (styles or {}).get(word, "")


def print_error(error: SlurmRayFlowError) -> None:
    """Write an error: what went wrong, where, and what to try."""
    from rich.console import Console

    stderr = Console(stderr=True, highlight=False)
    stderr.print(f"{type(error).__name__}: ", style="bold red", end="", markup=False)
    stderr.print(str(error), soft_wrap=True, markup=False)


def print_exception(error: BaseException, *, frames: bool = False) -> None:
    """Write an exception of the user's code, with its notes: the last of them is the traceback on the cluster.

    Args:
        frames: also write where it was raised in this process.
    """
    lines = traceback.format_exception(error.with_traceback(error.__traceback__ if frames else None))
    sys.stderr.write(plain("".join(lines)))


def describe_error(error: BaseException) -> dict[str, Any]:
    """An error as JSON for scripts."""
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
