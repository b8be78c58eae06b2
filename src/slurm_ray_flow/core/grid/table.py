"""The cells and columns of a campaign's table. Pure functions."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from slurm_ray_flow.core.text import encodable

FIXED = ("number", "state", "seconds", "value", "error")
PLAIN = (bool, int, float, str, type(None), datetime.datetime, datetime.date)
LONGEST_REPR = 1000
Cells = dict[str, Any]


def argument_cells(args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Sequence[str]) -> Cells:
    """The cells of an item's arguments.

    The one value of an item that is a mapping of plain values has a column for each key; one that is a tuple of plain
    values has a column for each place.

    Args:
        args, kwargs: its arguments.
        parameters: the names of the function's parameters by place.
    """
    names = [*parameters[: len(args)], *(f"argument{place}" for place in range(len(parameters), len(args)))]
    cells: Cells = {}
    for name, argument in [*zip(names, args, strict=True), *kwargs.items()]:
        parts = _parts(argument)
        if parts is None or len(args) + len(kwargs) > 1:
            cells[_free(name)] = cell_of(argument)
        elif isinstance(argument, Mapping) or hasattr(argument, "_fields"):
            cells.update({_free(key): part for key, part in parts.items()})
        else:
            cells.update({_free(f"{name}.{key}"): part for key, part in parts.items()})
    return cells


def value_cells(value: Any) -> Cells:
    """The cells of an item's value: one, or one for each key of a dictionary of plain values or of a named tuple."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        parts: Cells | None = {name: cell_of(part) for name, part in zip(_names_of(value), value, strict=False)}
    else:
        parts = _parts(value) if isinstance(value, Mapping) else None
    if parts:
        return {f"value.{key}": part for key, part in parts.items()}
    return {"value": cell_of(value)}


def cell_of(value: Any) -> Any:
    """A value as a cell: itself where it is plain, else its JSON form, else its repr."""
    plain = _plain(value)
    if plain is not _NOT_PLAIN:
        return plain
    try:
        return encodable(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return encodable(repr(value)[:LONGEST_REPR])
    except Exception:
        return f"a {type(value).__name__}"


def columns_of(arguments: Sequence[str], values: Sequence[str]) -> list[str]:
    """All columns in their order.

    Args:
        arguments: those of arguments, in the order in which they were met.
        values: those of values; none for a campaign without values.
    """
    return ["number", *arguments, "state", "seconds", *(values or ["value"]), "error"]


_NOT_PLAIN = object()


def _plain(value: Any) -> Any:
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, str | decimal.Decimal | pathlib.PurePath | uuid.UUID):
        return encodable(str(value))
    if isinstance(value, datetime.datetime) and type(value) is not datetime.datetime:
        return value.isoformat()
    return value if type(value) in PLAIN else _NOT_PLAIN


def _parts(value: Any) -> Cells | None:
    """The parts of a collection of plain values by their names; None for what is none."""
    if hasattr(value, "_fields") and isinstance(value, tuple):
        pairs: list[tuple[Any, Any]] = list(zip(_names_of(value), value, strict=False))
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    elif type(value) is tuple:
        pairs = list(enumerate(value))
    else:
        return None
    parts = {str(name): _plain(part) for name, part in pairs}
    has_names = all(isinstance(name, str | int) for name, _ in pairs) and 0 < len(parts) == len(pairs) <= 1000
    return parts if has_names and all(part is not _NOT_PLAIN for part in parts.values()) else None


def _names_of(value: Any) -> tuple[str, ...]:
    """The names of a named tuple's parts."""
    return tuple(value._fields)


def _free(name: str) -> str:
    """The name of an argument's column, which none of the others has."""
    return f"argument.{name}" if name in FIXED or name.startswith(("value.", "argument.")) else encodable(name)
