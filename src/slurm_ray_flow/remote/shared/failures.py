"""Exceptions that travel home with their type, arguments, attributes, notes, cause, context and group.

`pack` puts an exception into a dictionary, `unpack` takes it out.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

Packed = Dict[str, Any]
STANDS_FOR = "__stands_for__"
"""The attribute of a substitute with the type's name of the original exception, which could not travel."""


def pack(error: BaseException, travels: Callable[[Any], bool]) -> Packed:
    """A dictionary with `error`, or with a substitute that can be pickled.

    Args:
        error: the exception.
        travels: whether an object can be pickled and comes back as the same type.
    """
    return {"exception": error if travels(error) else _substitute(error, travels, [])}


def unpack(packed: Packed) -> BaseException:
    """The exception that `pack` was given, with its chain; it has not been raised yet."""
    error = packed["exception"]
    assert isinstance(error, BaseException)
    return error


def reduce(error: BaseException) -> Any:
    """How an exception is pickled: without a second call of its `__init__`, which may change the arguments."""
    reduced: Any = error.__reduce_ex__(5)
    if isinstance(reduced, str) or len(reduced) > 3:
        return reduced
    state = reduced[2] if len(reduced) > 2 else None
    parts = (state, error.args, (error.__cause__, error.__context__, error.__suppress_context__))
    if any(_is_written_in_python(_member(type(error), name)) for name in ("__reduce__", "__reduce_ex__")):
        return (*reduced[:2], parts, None, None, fill)  # the class has its own way
    return make, (type(error), reduced[1]), parts, None, None, fill


def _member(kind: type, name: str) -> Any:
    return next(vars(base)[name] for base in kind.__mro__ if name in vars(base))


def make(kind: type, args: Tuple[Any, ...]) -> BaseException:
    """An exception of this type, made by its nearest builtin base from these arguments."""
    maker, starter = (_first_built_in(kind, name) for name in ("__new__", "__init__"))
    error: BaseException = maker.__new__(kind, *args)
    with contextlib.suppress(TypeError):  # the state has the attributes that it would set
        starter.__init__(error, *args)
    return error


def _first_built_in(kind: type, name: str) -> Any:
    return next(base for base in kind.__mro__ if name in vars(base) and not _is_written_in_python(vars(base)[name]))


def _is_written_in_python(member: Any) -> bool:
    return isinstance(getattr(member, "__func__", member), types.FunctionType)


def fill(error: BaseException, parts: Tuple[Any, Tuple[Any, ...], Tuple[Any, Any, bool]]) -> None:
    """Set attributes and chain of an exception of `make`."""
    state, args, (cause, context, suppress) = parts
    if state is not None:
        error.__setstate__(state)
    error.args = args
    error.__cause__, error.__context__, error.__suppress_context__ = cause, context, suppress


def _substitute(error: BaseException, travels: Callable[[Any], bool], seen: List[int]) -> BaseException:
    """An exception for `error` that can be pickled: of its type, else of its nearest base of which one can."""
    seen.append(id(error))
    for kind in type(error).__mro__:
        substitute = _stand_in(error, kind, travels) if issubclass(kind, BaseException) else None
        if substitute is not None and travels(substitute):
            break
    else:  # not reached: a BaseException with strings can be pickled
        substitute = RuntimeError(describe(error))
    for name in ("__cause__", "__context__"):
        linked = getattr(error, name)
        if linked is not None and id(linked) not in seen and len(seen) < 50:
            setattr(substitute, name, linked if travels(linked) else _substitute(linked, travels, seen))
    substitute.__suppress_context__ = error.__suppress_context__
    return substitute


def _stand_in(error: BaseException, kind: type, travels: Callable[[Any], bool]) -> Optional[BaseException]:
    """An exception of type `kind` with the message of `error` and those of its attributes that can be pickled."""
    same_type = kind is type(error)
    args = tuple(argument if travels(argument) else _safe_repr(argument) for argument in error.args)
    try:
        made = make(kind, args if same_type else (_safe_str(error),))
    except Exception:
        return None
    travelling = {name: value for name, value in vars(error).items() if travels(value)}
    left_out = ["{} = {}".format(name, _safe_repr(vars(error)[name])) for name in vars(error) if name not in travelling]
    note = "It was {}.".format(describe(error)) if not same_type else "Not all of it can travel."
    vars(made).update(travelling)
    vars(made)["__notes__"] = [*travelling.get("__notes__", ()), " ".join([note, *left_out])]
    vars(made)[STANDS_FOR] = "{}.{}".format(type(error).__module__, type(error).__qualname__)
    return made


def describe(error: BaseException) -> str:
    """Type and arguments of an exception, as text."""
    arguments = ", ".join(_safe_repr(argument) for argument in error.args)
    return "{}.{}({})".format(type(error).__module__, type(error).__qualname__, arguments)


def _safe_str(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return type(error).__name__


def _safe_repr(value: object) -> str:
    try:
        return repr(value)[:2000]
    except Exception:
        return "<{} whose repr fails>".format(type(value).__name__)
