"""From a live function to the source it was written in."""

# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH100, PTH113

from __future__ import annotations

import functools
import inspect
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FunctionType
from typing import Any

from slurm_ray_flow.core.errors import ScanError
from slurm_ray_flow.core.scan.model import Target
from slurm_ray_flow.core.scan.references import References


def target_of(function: Callable[..., Any], arguments: Iterable[object] = ()) -> Target:
    """Return where the source of a function is, and which modules the live function and its arguments refer to.

    Args:
        function: a function of a module, a script, a notebook or the REPL, a lambda, a closure, a decorated function,
            a `functools.partial`, a method, a class or a callable object.
        arguments: what it is called with: the code need not mention what they are made of.

    Raises:
        ScanError: it can't be called.
    """
    if not callable(function):
        raise ScanError(f"{function!r} is not callable.", advice="Give a function, a method or a callable object.")
    references = References()
    plain = _plain(function, references)
    name = getattr(plain, "__module__", None) or type(plain).__module__
    label = f"{name}.{getattr(plain, '__qualname__', type(plain).__qualname__)}"
    references.follow(plain)
    references.values(arguments)
    return _located(plain, name, label, references.modules())


def _plain(function: Any, references: References) -> Any:
    """Return the function or class that was written, under partials, bound methods and decorators."""
    for _ in range(1000):
        if isinstance(function, functools.partial):
            references.values([*function.args, *function.keywords.values()])
            inner = function.func
        elif inspect.ismethod(function):
            references.state(function.__self__)
            inner = function.__func__
        elif getattr(function, "__wrapped__", None) is not None:
            references.values([function])
            inner = function.__wrapped__
        elif isinstance(_call_of(function), FunctionType):
            references.state(function)
            inner = _call_of(function)
        else:
            return function
        function = inner
    raise ScanError(f"{function!r} wraps itself.", advice="Check the __wrapped__ attribute of its decorators.")


def _call_of(function: Any) -> Any:
    if isinstance(function, (FunctionType, type)):
        return None
    return inspect.getattr_static(type(function), "__call__", None)


def _located(plain: Any, name: str, label: str, imported: tuple[str, ...]) -> Target:
    module = sys.modules.get(name)
    file = _file_of(plain, module)
    line = _line_of(plain)
    if name != "__main__":
        if file is None and module is None:
            return Target(None, None, _source_of(plain), label, line, imported)
        return Target(name, file, None, label, line, imported)
    if file is not None and getattr(module, "__file__", None):
        spec = getattr(module, "__spec__", None)
        return Target(None, file, None, label, line, imported, spec.parent if spec is not None else None)
    return Target(None, None, _source_of(plain), label, line, imported)


def _file_of(plain: Any, module: object) -> Path | None:
    code = getattr(plain, "__code__", None)
    in_main = getattr(module, "__name__", None) == "__main__"
    name = code.co_filename if code is not None and (in_main or module is None) else getattr(module, "__file__", None)
    return Path(os.path.abspath(name)) if name and os.path.isfile(name) else None


def _line_of(plain: Any) -> int:
    code = getattr(plain, "__code__", None)
    return code.co_firstlineno if code is not None else 1


def _source_of(plain: Any) -> str | None:
    try:
        return textwrap.dedent(inspect.getsource(plain))
    except (OSError, TypeError):
        return None
