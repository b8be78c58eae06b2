"""How the command writes: tables and words for people, JSON for scripts."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from slurm_ray_flow.core.errors import SlurmRayFlowError


def print_json(value: Any) -> None:
    """Write one JSON document."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201 - this is the command's output


def print_text(text: str) -> None:
    """Write a line for people."""
    Console(highlight=False).print(text, soft_wrap=True, markup=False)


def print_table(columns: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """Write a table for people; plain columns where there is no terminal."""
    table = Table(*columns, title=title, box=None, pad_edge=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def print_error(error: SlurmRayFlowError) -> None:
    """Write what went wrong, where, and what to try."""
    console = Console(stderr=True, highlight=False)
    console.print(f"{type(error).__name__}: ", style="bold red", end="", markup=False)
    console.print(str(error), soft_wrap=True, markup=False)
