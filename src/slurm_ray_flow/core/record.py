"""Records: dataclasses of plain values, as JSON files at home that a loss of power may damage."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, TypeVar

Record = TypeVar("Record")


def read_record(kind: type[Record], fields: Any) -> Record:
    """Read a record of this class; unknown fields, as of later versions, are ignored.

    Raises:
        ValueError: a field is missing or has another type.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"this is no record: a {type(fields).__name__}")
    kinds = _type_hints(kind)  # type: ignore[arg-type]
    values = {field.name: fields[field.name] for field in dataclasses.fields(kind) if field.name in fields}  # type: ignore[arg-type]
    wrong = [name for name, value in values.items() if not _has_type(value, kinds[name])]
    if wrong:
        raise ValueError(f"this is no record: {', '.join(wrong)} of another type")
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"this is no record: {error}") from None


_type_hints = functools.lru_cache(typing.get_type_hints)


def _has_type(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_has_type(value, one) for one in typing.get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e11
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(kind) or kind)
