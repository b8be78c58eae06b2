"""Rules of pickling by type, for objects that neither pickle nor cloudpickle handles as a user expects."""

from __future__ import annotations

import _thread
import copyreg
import functools
import importlib
import importlib.machinery
import io
import linecache
import operator
import os
import sys
import types
import typing
import weakref
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from cloudpickle import cloudpickle  # type: ignore[import-untyped,unused-ignore]

from slurm_ray_flow.remote.shared import failures, rebuilding
from slurm_ray_flow.remote.shared.pickling import Sources, by_name, has_name, importable

Reduced = Any
Rule = Callable[[Any, Any], Reduced]
"""Takes the pickler and the object; returns the result of `reducer_override`."""
_DILL_TYPES = (
    "_contextvars.Context", "builtins.super", "builtins.PyCapsule",
    "builtins.wrapper_descriptor", "builtins.member_descriptor", "weakref.ProxyType", "weakref.CallableProxyType",
)  # fmt: skip
"""Types that only dill can pickle."""
MODULE_ATTRIBUTES = ("__package__", "__file__", "__path__")
"""Attributes of its module that code may read."""


class DeadValue(TypeError):
    """The value is useless outside of the process, or the Ray cluster, that made it."""


def is_full(cell: Any) -> bool:
    """Whether a closure's cell has a value."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _by_dill(_: Any, obj: Any) -> Reduced:
    dill: Any = importlib.import_module("dill")
    return dill.loads, (dill.dumps(obj),)


def _file(pickler: Any, obj: Any) -> Reduced:
    if obj in (sys.stdout, sys.stderr):
        return getattr, (sys, "stdout" if obj is sys.stdout else "stderr")
    if pickler.homeward:
        raise DeadValue("an open file ({}) can't come home: return its name, or what it holds".format(_name_of(obj)))
    if isinstance(obj, io.TextIOWrapper):
        return NotImplemented  # cloudpickle pickles its content, and refuses a file opened for writing
    return _by_dill(pickler, obj)


def _name_of(obj: Any) -> str:
    return str(getattr(obj, "name", type(obj).__name__))


def _module(_: Any, module: ModuleType) -> Reduced:
    if by_name(module):
        return importlib.import_module, (module.__name__,)
    if sys.modules.get(module.__name__) is module and not cloudpickle._is_registered_pickle_by_value(module):
        return rebuilding.module_of_namespace, (module.__name__, attributes_of(module))
    state = {name: value for name, value in vars(module).items() if name != "__builtins__"}
    return cloudpickle.dynamic_subimport, (module.__name__, {}), state


def _view(_: Any, view: memoryview) -> Reduced:
    data = view.tobytes() if view.readonly else bytearray(view.tobytes())
    return rebuilding.make_view, (data, view.format, view.shape)


def _code(_: Any, code: types.CodeType) -> Reduced:
    """Code with its own file name, for tracebacks and `inspect`; cloudpickle from 3.1.3 on gives all code the same."""
    maker, parts = cloudpickle._code_reduce(code)
    return maker, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


def _cell(_: Any, cell: Any) -> Reduced:
    if not is_full(cell):
        return types.CellType, ()
    return types.CellType, (), (cell.cell_contents,), None, None, rebuilding.set_cell


def _lru_cached(_: Any, function: Any) -> Reduced:
    if has_name(function, function.__module__, function.__qualname__):
        return function.__qualname__
    attributes = {key: value for key, value in vars(function).items() if key not in ("__wrapped__", "cache_parameters")}
    return rebuilding.make_cached, (function.__wrapped__, function.cache_parameters(), attributes)


def _reference(_: Any, reference: Any) -> Reduced:
    target = reference()
    return (type(reference), (target,)) if target is not None else (rebuilding.dead_reference, ())


def _weak_dictionary(_: Any, dictionary: Any) -> Reduced:
    return type(dictionary), (dict(dictionary.items()),)


def _named(maker: Any, arguments: Callable[[Any], Any], *options: str) -> Callable[..., Reduced]:
    def rule(_: Any, obj: Any) -> Reduced:
        if has_name(obj, obj.__module__, obj.__name__):
            return obj.__name__
        keywords = {name: getattr(obj, "__{}__".format(name)) for name in options}
        values = arguments(obj)
        values = values if isinstance(values, tuple) else (values,)
        return rebuilding.make_named, (obj.__module__, obj.__name__, maker, values, keywords)

    return rule


def _type_variable(_: Any, variable: Any) -> Reduced:
    """A type variable by name if its module can be imported; cloudpickle's own rule takes this for granted."""
    if has_name(variable, variable.__module__, variable.__name__):
        return getattr, (sys.modules[variable.__module__], variable.__name__)
    return cloudpickle._make_typevar, cloudpickle._decompose_typevar(variable)


def attributes_of(module: ModuleType) -> Dict[str, Any]:
    """The `MODULE_ATTRIBUTES` of a module, and its spec, by which child processes find a `python -m` module."""
    attributes = {key: vars(module)[key] for key in MODULE_ATTRIBUTES if isinstance(vars(module).get(key), (str, list))}
    spec = getattr(module, "__spec__", None)
    if spec is not None and module.__name__ == "__main__" and "__file__" in attributes:
        attributes["__spec__"] = importlib.machinery.ModuleSpec(spec.name, None)
    return attributes


def _sources_of(files: Set[str]) -> Dict[str, str]:
    texts = {name: "".join(linecache.getlines(name)) for name in sorted(files)}
    return {name: text for name, text in texts.items() if text}


# Objects that a module holds under a name


def _instance(pickler: Any, obj: Any) -> Reduced:
    """An object whose class is pickled by value; if it is a global of its module, it keeps its identity."""
    kind = type(obj)
    name = _global_name(obj, kind.__module__)
    if kind in copyreg.dispatch_table or (name is None and _reduces_plainly(kind)):
        return NotImplemented
    reduced = obj.__reduce_ex__(5)
    if isinstance(reduced, str) and has_name(obj, getattr(obj, "__module__", None), reduced):
        return reduced
    if isinstance(reduced, str):  # a name, but its module can't be imported: pickle the content
        reduced = (copyreg.__newobj__, (kind,), getattr(obj, "__dict__", None))  # type: ignore[attr-defined]
    is_marker = _is_marker(obj)
    if name is None or any(part is not None for part in reduced[3:]) or (pickler.homeward and not is_marker):
        return reduced
    constructor, constructor_args, state = (*reduced, None)[:3]
    arguments = (kind.__module__, name, kind, is_marker, constructor, constructor_args)
    return rebuilding.take_global, arguments, state, None, None, rebuilding.fill_object


def _global_name(obj: Any, module: str) -> Optional[str]:
    names = vars(sys.modules[module])
    return next((name for name, value in list(names.items()) if value is obj), None)


def _reduces_plainly(kind: Any) -> bool:
    return kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__


def _marker(_: Any, obj: Any) -> Reduced:
    """A plain `object()`, or an object without a state: pickled by name if it is a module's global."""
    if not _is_marker(obj):
        return NotImplemented
    for module, name in _global_names_of(obj):
        if importable(module):
            return getattr, (sys.modules[module], name)
        return rebuilding.take_global, (module, name, type(obj), True, object.__new__, (type(obj),))
    return NotImplemented


def _has_no_state(kind: Any) -> bool:
    """Whether a class is written in Python and its instances may have no state, so that only names tell them apart."""
    written_in_python = kind.__flags__ & 1 << 9
    plain = _reduces_plainly(kind) and kind.__init__ is object.__init__ and kind.__base__ is object
    if not (written_in_python and plain):
        return False
    return not copyreg._slotnames(kind)  # type: ignore[attr-defined]


def _is_marker(obj: Any) -> bool:
    return type(obj) is object or (_has_no_state(type(obj)) and not getattr(obj, "__dict__", None))


def _global_names_of(obj: Any) -> List[Tuple[str, str]]:
    """Modules and names of globals that are this object: of its class's module, or of any for a plain `object()`."""
    modules = sorted(sys.modules) if type(obj) is object else [type(obj).__module__]
    candidates = ((name, sys.modules.get(name)) for name in modules)
    return [
        (module_name, name)
        for module_name, module in candidates
        if isinstance(module, ModuleType)
        for name, value in list(vars(module).items())
        if value is obj
    ]


_RULES: Dict[Any, Callable[..., Reduced]] = {
    memoryview: _view,
    types.CodeType: _code,
    types.CellType: _cell,
    weakref.ref: _reference,
    weakref.WeakMethod: _reference,
    weakref.WeakKeyDictionary: _weak_dictionary,
    weakref.WeakValueDictionary: _weak_dictionary,
    functools._lru_cache_wrapper: _lru_cached,
    typing.NewType: _named(typing.NewType, operator.attrgetter("__name__", "__supertype__")),
    typing.TypeVar: _type_variable,
    typing.ParamSpec: _named(typing.ParamSpec, operator.attrgetter("__name__"), "bound", "covariant", "contravariant"),
    object: _marker,
    Sources: lambda pickler, _: (rebuilding.learn_sources, (_sources_of(pickler.files),)),
}
for _new, _parts in (("TypeVarTuple", ("__name__",)), ("TypeAliasType", ("__name__", "__value__"))):
    if hasattr(typing, _new):  # from Python 3.11, and from 3.12 on
        _RULES[getattr(typing, _new)] = _named(getattr(typing, _new), operator.attrgetter(*_parts))


# Rules for types of packages, by their names: nothing is imported for them


def _memmap(_: Any, array: Any) -> Reduced:
    """A `numpy.memmap`, with its data for a run that does not have the file."""
    plain = array.view(importlib.import_module("numpy").ndarray)
    if type(array.base).__name__ != "mmap" or not array.filename:  # a part of a memmap, or a memmap without a file
        return plain.__reduce_ex__(5)
    array.flush()
    status = os.stat(array.filename)
    mode = array.mode if array.mode in ("r", "c") else "r+"
    arguments = (str(array.filename), status.st_size, status.st_mtime_ns, mode, array.offset, plain)
    return rebuilding.make_mapped, arguments


def _array(_: Any, array: Any) -> Reduced:
    """An array of a subclass with its own attributes, which numpy does not pickle."""
    numpy = importlib.import_module("numpy")
    if type(array).__reduce__ is not numpy.ndarray.__reduce__ or not getattr(array, "__dict__", None):
        return NotImplemented
    maker, args, state = array.__reduce__()
    return maker, args, (state, vars(array)), None, None, rebuilding.fill_array


def _remote_function(_: Any, remote: Any) -> Reduced:
    return rebuilding.make_remote, (dict(remote._default_options), remote._function)


def _actor_class(_: Any, actor: Any) -> Reduced:
    metadata = actor.__ray_metadata__
    plain = getattr(metadata.modified_class, "__ray_actor_class__", metadata.modified_class)
    return rebuilding.make_remote, (dict(actor._default_options or {}), plain)


def _of_ray(description: str, advice: str) -> Callable[..., Reduced]:
    def rule(pickler: Any, _: Any) -> Reduced:
        if pickler.homeward:
            raise DeadValue("{} means nothing when its Ray cluster has ended: {}".format(description, advice))
        return NotImplemented

    return rule


_RULES_BY_NAME: Dict[str, Callable[..., Reduced]] = {
    **dict.fromkeys(_DILL_TYPES, _by_dill),
    "_thread.lock": lambda *_: (_thread.allocate_lock, ()),  # a new, free lock
    "_thread.RLock": lambda *_: (_thread.RLock, ()),
    "numpy.memmap": _memmap,
    "numpy.ndarray": _array,
    "ray.remote_function.RemoteFunction": _remote_function,
    "ray.actor.ActorClass": _actor_class,
    "ray.ObjectRef": _of_ray("an ObjectRef", "return what `ray.get(...)` gives for it"),
    "ray.ObjectRefGenerator": _of_ray("an ObjectRefGenerator", "return what `ray.get(...)` gives for its references"),
    "ray.actor.ActorHandle": _of_ray(
        "an actor handle (ActorHandle)", "return what its methods give, by `ray.get(...)`"
    ),
}


# The choice of a rule


@functools.lru_cache(maxsize=4096)
def rule_for(kind: Any) -> Optional[Rule]:
    """The rule for objects of this type; None leaves them to pickle."""
    if kind in _RULES:
        return _RULES[kind]
    if hasattr(kind, "reduce_for_run"):
        return lambda _, obj: obj.reduce_for_run()
    rules = (_RULES_BY_NAME.get("{}.{}".format(base.__module__, base.__qualname__)) for base in kind.__mro__)
    return next((rule for rule in rules if rule is not None), None) or _rule_by_base(kind)


def _rule_by_base(kind: Any) -> Optional[Rule]:
    for base, rule in _RULES_BY_BASE:
        if issubclass(kind, base):
            return rule
    if not importable(kind.__module__) and kind.__module__ in sys.modules:
        return _instance
    return _marker if _has_no_state(kind) else None


_RULES_BY_BASE: Tuple[Tuple[type, Optional[Rule]], ...] = (
    (BaseException, lambda _, error: failures.reduce(error)),
    (ModuleType, _module),
    (io.StringIO, None),
    (io.BytesIO, None),
    (io.IOBase, _file),
)
