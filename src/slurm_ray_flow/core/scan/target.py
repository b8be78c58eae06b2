"""The source of a live function."""

from __future__ import annotations

import dis
import functools
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from slurm_ray_flow.core.errors import ScanError
from slurm_ray_flow.core.scan.model import FunctionSource

_NAMED = {"LOAD_GLOBAL", "LOAD_NAME"}
_WORD = re.compile(r"[^\W\d]\w*")
# The first elements of a long list are enough to know its types.
_ENOUGH = 1000


class References:
    """Follows names from functions to the objects that they mean; no function is called, no attribute computed."""

    def __init__(self) -> None:
        self._modules: set[str] = set()
        self._seen: set[int] = set()

    def modules(self) -> tuple[str, ...]:
        """Return the dotted names of the modules found so far; the last part of a name may be an attribute."""
        return tuple(sorted(self._modules - {"__main__", "builtins"}))

    def follow(self, plain: object) -> None:
        """Follow the references of a function or class.

        The scan reads a module's file, so only the closure of a function in it is followed here. Functions of a script,
        notebook or REPL are followed through all their globals.
        """
        self._seen.add(id(plain))
        if isinstance(plain, FunctionType):
            self._closure(plain)
            if _is_interactive(plain.__module__):
                self._code(plain.__code__, plain.__globals__)
                self.values([*(plain.__defaults__ or ()), *(plain.__kwdefaults__ or {}).values()])
                self._annotations(plain)
        elif isinstance(plain, type) and _is_interactive(plain.__module__):
            self.values(plain.__bases__)
            self.values(getattr(each, "__func__", each) for each in vars(plain).values())

    def values(self, values: Iterable[object]) -> None:
        """Note the modules of objects."""
        for value in values:
            self._value(value)

    def _value(self, value: object) -> None:
        if isinstance(value, ModuleType):
            self._module(value.__name__)
            return
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, (list, tuple, set, frozenset)):
            self.values(islice(value, _ENOUGH))
        elif isinstance(value, dict):
            self.values(islice(value.values(), _ENOUGH))
        elif isinstance(value, (FunctionType, type)):
            self._module(value.__module__)
            self.follow(value)
        elif isinstance(value, MethodType):
            self.values([value.__func__, value.__self__])
        else:
            named_object = value if isinstance(value, BuiltinFunctionType) else type(value)
            self._module(getattr(named_object, "__module__", None))
            if named_object is not value:
                self.values([type(value)])
                if _is_interactive(type(value).__module__):
                    self.values(islice(getattr(value, "__dict__", {}).values(), _ENOUGH))

    def _module(self, name: object) -> None:
        # Some compiled types name modules that do not exist, and built-in modules need no file.
        module = sys.modules.get(name) if isinstance(name, str) else None
        if module is not None and (hasattr(module, "__path__") or getattr(module, "__file__", None)):
            self._modules.add(str(name))

    def state(self, owner: object) -> None:
        """Note the modules of an object and of its attributes' values."""
        self.values([owner, *getattr(owner, "__dict__", {}).values()])

    def _closure(self, function: FunctionType) -> None:
        for cell in function.__closure__ or ():
            try:
                self._value(cell.cell_contents)
            except ValueError:  # not yet filled
                continue

    def _annotations(self, function: FunctionType) -> None:
        """Follow the annotations, which travel with the function: objects, or texts that name objects."""
        for annotation in function.__annotations__.values():
            if isinstance(annotation, str):
                module_globals = function.__globals__
                self.values(module_globals[word] for word in _WORD.findall(annotation) if word in module_globals)
            else:
                self.values([annotation, *getattr(annotation, "__args__", ())])

    def _code(self, code: CodeType, names: dict[str, Any]) -> None:
        for inner in _nested(code):
            fromlist: object = None
            for step in dis.get_instructions(inner):
                if step.opname in _NAMED and step.argval in names:
                    self._value(names[step.argval])
                elif step.opname == "IMPORT_NAME":
                    self._imported(str(step.argval), fromlist)
                fromlist = step.argval if step.opname == "LOAD_CONST" else None

    def _imported(self, name: str, fromlist: object) -> None:
        self._modules.add(name)
        if isinstance(fromlist, tuple):
            self._modules.update(f"{name}.{last}" for last in fromlist if last != "*")


def _is_interactive(module: str | None) -> bool:
    """Return whether the scan does not read a function's module as a file: a script, a notebook, a REPL, an exec."""
    return module == "__main__" or module not in sys.modules


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


# A scan handles tens of thousands of paths, and making a Path costs more than the work on it.
# ruff: noqa: PTH100, PTH113


def target_of(function: Callable[..., Any], arguments: Iterable[object] = ()) -> FunctionSource:
    """Return the source of a function, and the modules that the live function and its arguments refer to.

    Args:
        function: a function of a module, a script, a notebook or the REPL, a lambda, a closure, a decorated function,
            a `functools.partial`, a method, a class or a callable object.
        arguments: its arguments, whose types the code need not mention.

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


def modules_of(values: Iterable[object]) -> tuple[str, ...]:
    """Return the dotted names of the modules that values refer to by their types."""
    references = References()
    references.values(values)
    return references.modules()


def _plain(function: Any, references: References) -> Any:
    """Return the function or class in the source, from under partials, bound methods and decorators."""
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


def _located(plain: Any, name: str, label: str, imported: tuple[str, ...]) -> FunctionSource:
    module = sys.modules.get(name)
    file = _file_of(plain, module)
    line = _line_of(plain)
    if name != "__main__":
        if file is None and module is None:
            return FunctionSource(None, None, _source_of(plain), label, line, imported)
        return FunctionSource(name, file, None, label, line, imported)
    if file is not None and getattr(module, "__file__", None):
        spec = getattr(module, "__spec__", None)
        return FunctionSource(None, file, None, label, line, imported, spec.parent if spec is not None else None)
    return FunctionSource(None, None, _source_of(plain), label, line, imported)


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
