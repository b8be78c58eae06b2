"""The digest of a value by its content: equal in every process and on every day, and different for any other value.

The bytes of a pickle depend on the order of sets, on which equal strings are one object, and on lines and files of
code. This pickler writes only the content, into a hash. An object that can be imported counts by its name, since its
content is in the digests of the project's files and of the packages.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import marshal
import pickle
import types
import typing
from typing import Any

from slurm_ray_flow.remote.shared.pickling import PLAIN, importable, is_plain, resolve_function


class Undigestible(ValueError):
    """The value has no digest, because the content of a part can't be read."""


MANY = 256
"""The number of plain elements from which on a collection is pickled as a whole, in C."""
Digests = dict[int, tuple[bytes, object]]


def digest_of(value: object) -> str:
    """The digest of a value, as a text.

    Equal values of other types, or in another order, have other digests; sets have no order.

    Raises:
        Undigestible: the value has no digest.
    """
    try:
        return _digest(value, {}).hex()
    except Exception as error:  # whatever an object's own methods raise
        raise Undigestible(f"{type(error).__name__}: {error}") from error


def _digest(value: object, digests: Digests) -> bytes:
    if id(value) not in digests:
        hashed = hashlib.sha256()
        _Content(types.SimpleNamespace(write=hashed.update), digests).dump(value)
        digests[id(value)] = hashed.digest(), value  # kept, so that no other object gets its id
    return digests[id(value)][0]


_Pickler: Any = pickle._Pickler  # the one in C asks nobody


class _Content(_Pickler):  # type: ignore[misc]
    """A pickler that writes each object by its content: pickle calls `save` for every object."""

    # dill, once it is imported, puts its own functions into the dispatch of pickle's class: not into this one.
    dispatch: typing.ClassVar[Any] = {
        type(None): _Pickler.save_none, bool: _Pickler.save_bool, int: _Pickler.save_long, float: _Pickler.save_float,
        bytes: _Pickler.save_bytes, str: _Pickler.save_str, tuple: _Pickler.save_tuple, list: _Pickler.save_list,
        dict: _Pickler.save_dict, bytearray: _Pickler.save_bytearray, type: _Pickler.save_type,
    }  # fmt: skip

    def __init__(self, file: Any, digests: Digests) -> None:
        super().__init__(file, protocol=4)
        self._digests, self._outermost = digests, True

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        """Write one object: by its content, by its digest, or as pickle does."""
        outermost, self._outermost = self._outermost, False
        if type(obj) in PLAIN or id(obj) in self.memo:
            super().save(obj, save_persistent_id)
        elif (content := _content(obj, self._digests)) is not None:
            self.write(b"\0%s\n" % type(obj).__name__.encode())  # a byte that begins nothing in a pickle
            self.memoize(obj)  # before its content, which may hold it
            super().save(content)
        elif outermost or type(obj) in _INLINE or not _is_value(obj) or id(type(obj)) in self.memo:
            super().save(obj, save_persistent_id)  # a class that is being written may hold instances of itself
        else:  # whether the same object occurs elsewhere, too, does not count
            self.write(b"\1" + _digest(obj, self._digests))

    def memoize(self, obj: Any) -> None:
        """Memoize mutable objects only, because the sharing of immutable objects does not count."""
        if type(obj) not in _INLINE and not _is_value(obj):
            super().memoize(obj)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        """Write the name of an object that can be imported."""
        name = name or getattr(obj, "__qualname__", None) or obj.__name__
        module = pickle.whichmodule(obj, name)  # type: ignore[attr-defined]
        if not importable(module):
            raise Undigestible(f"{name!r} of {module} has a content that can't be seen")
        self.write(f"\2{module}\n{name}\n".encode())


_INLINE = PLAIN | {bytes, tuple}
_DERIVED = ("__dict__", "__weakref__", "_abc_impl", "__static_attributes__", "__firstlineno__", "__signature__",
            "__pydantic_core_schema__", "__pydantic_serializer__", "__pydantic_validator__")  # fmt: skip
"""Attributes of a class that follow from its other attributes, or from its position in a file."""


def _is_value(obj: Any) -> bool:
    """Whether objects of this type are equal by content, as strings, dates, paths and frozen dataclasses are."""
    hash_method: Any = type(obj).__hash__
    return hash_method is not None and hash_method is not object.__hash__ and not isinstance(obj, type)


def _content(obj: Any, digests: Digests) -> Any:
    """The content of an object that this pickler writes in its own way; None for other objects."""
    kind = type(obj)
    if kind in (list, tuple, dict):  # marshal's version 0 knows neither shared nor interned strings
        return marshal.dumps(obj, 0) if len(obj) >= MANY and is_plain(obj) else None
    if isinstance(obj, type):
        return None if obj in _OF_PICKLE or _is_imported_by_name(obj) else _of_class(obj)
    if kind.__module__.startswith("ray.") and hasattr(obj, "_default_options"):
        inner = getattr(obj, "_function", None) or obj.__ray_metadata__.modified_class
        return inner, obj._default_options
    if hasattr(kind, "reduce_for_run"):  # a decorated function counts as the plain one
        return obj.reduce_for_run()
    if kind in (set, frozenset):
        return sorted(_element(part, digests) for part in obj)
    is_array = kind.__name__ == "ndarray" and kind.__module__ == "numpy"
    content_of = _of_array if is_array else _CONTENT.get(kind)
    return content_of and content_of(obj)


def _element(element: Any, digests: Digests) -> tuple[str, str]:
    if type(element) in PLAIN:
        return type(element).__name__, repr(element)
    if not _is_value(element) and not isinstance(element, (type, types.FunctionType)):
        raise Undigestible(f"a set of {type(element).__qualname__} objects, which equal nothing but themselves")
    return "", _digest(element, digests).hex()


def _is_imported_by_name(obj: Any) -> bool:
    """Whether other processes import the same object by its name."""
    try:
        return importable(obj.__module__) and resolve_function(obj.__module__, obj.__qualname__) is obj
    except (AttributeError, ImportError, TypeError, ValueError):
        return False


def _of_class(kind: type) -> Any:
    if not kind.__flags__ & 1 << 9:  # of the interpreter's own
        return kind.__module__, kind.__qualname__
    body = {name: part for name, part in vars(kind).items() if name not in _DERIVED}
    for name in [name for name, part in body.items() if type(part) is types.MemberDescriptorType]:
        body[name] = "slot"
    return type(kind), kind.__qualname__, kind.__bases__, list(body.items())


def _of_function(function: Any) -> Any:
    if _is_imported_by_name(function):
        return function.__module__, function.__qualname__
    if hasattr(function, "registry") and hasattr(function, "_clear_cache"):  # singledispatch, without its cache
        return function.__wrapped__, list(function.registry.items())
    module_globals = function.__globals__
    used = [(name, module_globals[name]) for name in sorted(_global_names(function.__code__)) if name in module_globals]
    defaults = function.__defaults__, function.__kwdefaults__, function.__annotations__, function.__dict__
    return function.__qualname__, function.__code__, *defaults, function.__closure__, used


def _global_names(code: types.CodeType) -> set[str]:
    """The names of globals in a code object and in those inside it; a class body reads them with LOAD_NAME."""
    names = {one.argval for one in dis.get_instructions(code) if "GLOBAL" in one.opname or one.opname == "LOAD_NAME"}
    return names.union(*(_global_names(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _of_code(code: types.CodeType) -> Any:
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    names = code.co_name, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars
    return code.co_code, code.co_consts, getattr(code, "co_exceptiontable", b""), *counts, *names


def _of_array(array: Any) -> Any:
    contiguous = array if array.flags.c_contiguous else array.copy("C")
    if array.dtype.hasobject:
        return repr(array.dtype), array.shape, contiguous.reshape(-1).tolist()
    content = hashlib.sha256(contiguous.reshape(-1).view("u1") if contiguous.nbytes else b"").digest()
    return repr(array.dtype), array.shape, content


def _of_module(module: types.ModuleType) -> Any:
    if importable(module.__name__):
        return module.__name__
    return module.__name__, [(name, part) for name, part in vars(module).items() if name[:2] != "__"]


def _of_cell(cell: Any) -> Any:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


_OF_PICKLE = (type(None), type(NotImplemented), type(...))
_CONTENT: dict[type, Any] = {
    types.FunctionType: _of_function,
    types.CodeType: _of_code,
    types.ModuleType: _of_module,
    types.CellType: _of_cell,
    types.MethodType: lambda method: (method.__func__, method.__self__),
    types.MappingProxyType: lambda proxy: (dict(proxy),),
    memoryview: lambda view: (view.format, view.shape, view.tobytes()),
    property: lambda found: (found.fget, found.fset, found.fdel, found.__doc__),
    classmethod: lambda found: (found.__func__,),
    staticmethod: lambda found: (found.__func__,),
    functools.cached_property: lambda found: (found.func, found.attrname),
    functools._lru_cache_wrapper: lambda found: (found.__wrapped__, found.cache_parameters()),
    typing.TypeVar: lambda found: (found.__name__, found.__bound__, found.__constraints__, found.__covariant__),
    typing.NewType: lambda found: (found.__name__, found.__supertype__),
}
