"""Exceptions on their way home: with their own type, arguments, attributes, notes, cause, context and group.

`pack` makes a plain dictionary of an exception, `unpack` an exception of that dictionary.
"""

from __future__ import annotations

import contextlib
import types
from typing import Any, Callable, Dict, List, Optional, Tuple

Packed = Dict[str, Any]
STANDS_FOR = "__stands_for__"
"""The attribute with the name of the type that an exception stands for, which could not travel itself."""


def pack(error: BaseException, travels: Callable[[Any], bool]) -> Packed:
    """A dictionary that can be pickled and holds `error`, or what of it can travel.

    Args:
        error: the exception.
        travels: whether an object can be pickled and comes back as the same type.
    """
    return {"exception": error if travels(error) else _portable(error, travels, [])}


def unpack(packed: Packed) -> BaseException:
    """The exception that `pack` took apart, with its chain; it has not been raised yet."""
    error = packed["exception"]
    assert isinstance(error, BaseException)
    return error


def reduce(error: BaseException) -> Any:
    """How an exception is pickled: its `__init__` is not called again, since it may form its arguments anew."""
    reduced: Any = error.__reduce_ex__(5)
    if isinstance(reduced, str) or len(reduced) > 3:
        return reduced
    state = reduced[2] if len(reduced) > 2 else None
    rest = (state, error.args, (error.__cause__, error.__context__, error.__suppress_context__))
    if any(_is_python(_member(type(error), name)) for name in ("__reduce__", "__reduce_ex__")):
        return (*reduced[:2], rest, None, None, fill)  # its author knows how
    return make, (type(error), reduced[1]), rest, None, None, fill


def _member(kind: type, name: str) -> Any:
    return next(vars(base)[name] for base in kind.__mro__ if name in vars(base))


def make(kind: type, args: Tuple[Any, ...]) -> BaseException:
    """An exception of this type, as the builtin type below it makes one of these arguments."""
    maker, starter = (_first_built_in(kind, name) for name in ("__new__", "__init__"))
    error: BaseException = maker.__new__(kind, *args)
    with contextlib.suppress(TypeError):  # what it would set stands in the state, if anywhere
        starter.__init__(error, *args)
    return error


def _first_built_in(kind: type, name: str) -> Any:
    return next(base for base in kind.__mro__ if name in vars(base) and not _is_python(vars(base)[name]))


def _is_python(member: Any) -> bool:
    return isinstance(getattr(member, "__func__", member), types.FunctionType)


def fill(error: BaseException, parts: Tuple[Any, Tuple[Any, ...], Tuple[Any, Any, bool]]) -> None:
    """Give an exception of `make` its attributes and its chain."""
    state, args, (cause, context, suppress) = parts
    if state is not None:
        error.__setstate__(state)
    error.args = args
    error.__cause__, error.__context__, error.__suppress_context__ = cause, context, suppress


def _portable(error: BaseException, travels: Callable[[Any], bool], seen: List[int]) -> BaseException:
    """An exception that travels and stands for `error`: of its type, else of the nearest base that can."""
    seen.append(id(error))
    for kind in type(error).__mro__:
        made = _stand_in(error, kind, travels) if issubclass(kind, BaseException) else None
        if made is not None and travels(made):
            break
    else:  # not reached: a BaseException with texts travels
        made = RuntimeError(describe(error))
    for name in ("__cause__", "__context__"):
        linked = getattr(error, name)
        if linked is not None and id(linked) not in seen and len(seen) < 50:
            setattr(made, name, linked if travels(linked) else _portable(linked, travels, seen))
    made.__suppress_context__ = error.__suppress_context__
    return made


def _stand_in(error: BaseException, kind: type, travels: Callable[[Any], bool]) -> Optional[BaseException]:
    """An exception of this type that says what `error` says, with those of its attributes that travel."""
    own = kind is type(error)
    args = tuple(argument if travels(argument) else _shown(argument) for argument in error.args)
    try:
        made = make(kind, args if own else (_text(error),))
    except Exception:
        return None
    kept = {name: value for name, value in vars(error).items() if travels(value)}
    lost = ["{} = {}".format(name, _shown(vars(error)[name])) for name in vars(error) if name not in kept]
    what = "It was {}.".format(describe(error)) if not own else "Not all of it can travel."
    vars(made).update(kept)
    vars(made)["__notes__"] = [*kept.get("__notes__", ()), " ".join([what, *lost])]
    vars(made)[STANDS_FOR] = "{}.{}".format(type(error).__module__, type(error).__qualname__)
    return made


def describe(error: BaseException) -> str:
    """Type and arguments of an exception, as text."""
    arguments = ", ".join(_shown(argument) for argument in error.args)
    return "{}.{}({})".format(type(error).__module__, type(error).__qualname__, arguments)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return type(error).__name__


def _shown(value: object) -> str:
    try:
        return repr(value)[:2000]
    except Exception:
        return "<{} whose repr fails>".format(type(value).__name__)
