"""Exceptions on their way home: with their own type where it travels, with cause, context and notes.

`pack` makes a plain dictionary of an exception, `unpack` an exception of that dictionary.
"""

from __future__ import annotations

import traceback
from typing import Any, Callable, Dict, List, Optional, Set

Packed = Dict[str, Any]


class DescribedError(Exception):
    """Stands for an exception that can't be pickled: its type's name, its arguments as text, its traceback.

    Attributes:
        type_name: module and name of the exception's type.
        arguments: the `repr` of each of its arguments.
        remote_traceback: the traceback as text.
    """

    def __init__(self, type_name: str, arguments: List[str], remote_traceback: str) -> None:
        super().__init__(type_name, arguments, remote_traceback)
        self.type_name, self.arguments, self.remote_traceback = type_name, arguments, remote_traceback

    def __str__(self) -> str:
        return "{}({})".format(self.type_name, ", ".join(self.arguments))


def pack(error: BaseException, travels: Callable[[Any], bool]) -> Packed:
    """A dictionary that can be pickled and holds all that is worth knowing about `error`.

    Args:
        error: the exception.
        travels: whether an object can be pickled and comes back as the same type.
    """
    return _pack(error, travels, set())


def unpack(packed: Packed) -> BaseException:
    """The exception that `pack` took apart, with its chain; it has not been raised yet."""
    error = _rebuild(packed)
    if packed["cause"] is not None:
        error.__cause__ = unpack(packed["cause"])
    if packed["context"] is not None:
        error.__context__ = unpack(packed["context"])
    error.__suppress_context__ = packed["suppress"]
    return error


def _pack(error: BaseException, travels: Callable[[Any], bool], seen: Set[int]) -> Packed:
    seen.add(id(error))
    return {
        **_itself(error, travels),
        "cause": _linked(error.__cause__, travels, seen),
        "context": _linked(error.__context__, travels, seen),
        "suppress": error.__suppress_context__,
    }


def _linked(error: Optional[BaseException], travels: Callable[[Any], bool], seen: Set[int]) -> Optional[Packed]:
    return None if error is None or id(error) in seen or len(seen) > 50 else _pack(error, travels, seen)


def _itself(error: BaseException, travels: Callable[[Any], bool]) -> Packed:
    if travels(error):
        return {"exception": error}
    parts = {"type": type(error), "args": error.args, "state": dict(vars(error))}
    # An __init__ with other parameters than args breaks the usual way; type, args and attributes may still travel.
    if travels(parts):
        return {"parts": parts}
    return {"exception": describe(error)}


def describe(error: BaseException) -> DescribedError:
    """The description of `error` for a reader who can't have its type."""
    name = "{}.{}".format(type(error).__module__, type(error).__qualname__)
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return DescribedError(name, [_shown(argument) for argument in error.args], text)


def _shown(value: object) -> str:
    try:
        return repr(value)[:2000]
    except Exception:
        return "<{} whose repr fails>".format(type(value).__name__)


def _rebuild(packed: Packed) -> BaseException:
    if "exception" in packed:
        error = packed["exception"]
        assert isinstance(error, BaseException)
        return error
    parts = packed["parts"]
    error = parts["type"].__new__(parts["type"], *parts["args"])
    assert isinstance(error, BaseException)
    error.args = parts["args"]
    vars(error).update(parts["state"])
    return error
