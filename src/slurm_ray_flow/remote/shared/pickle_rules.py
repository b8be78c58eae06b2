"""How objects travel, by their type, where neither pickle nor cloudpickle does what a user expects."""

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
"""Takes the pickler and the object; gives what `reducer_override` gives."""
_OF_DILL = (
    "_contextvars.Context", "builtins.super", "builtins.PyCapsule",
    "builtins.wrapper_descriptor", "builtins.member_descriptor", "weakref.ProxyType", "weakref.CallableProxyType",
)  # fmt: skip
"""Types that dill pickles, and neither pickle nor cloudpickle does."""
FACTS = ("__package__", "__file__", "__path__")
"""What code asks its module for."""


class DeadValue(TypeError):
    """Something that means nothing outside of the process, or the Ray cluster, that made it."""


def is_full(cell: Any) -> bool:
    """Whether a variable that functions share has a value."""
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
        return NotImplemented  # cloudpickle brings what it holds, and refuses one that is written to
    return _by_dill(pickler, obj)


def _name_of(obj: Any) -> str:
    return str(getattr(obj, "name", type(obj).__name__))


def _module(_: Any, module: ModuleType) -> Reduced:
    if by_name(module):
        return importlib.import_module, (module.__name__,)
    if sys.modules.get(module.__name__) is module and not cloudpickle._is_registered_pickle_by_value(module):
        return rebuilding.module_of_namespace, (module.__name__, facts_of(module))
    state = {name: value for name, value in vars(module).items() if name != "__builtins__"}
    return cloudpickle.dynamic_subimport, (module.__name__, {}), state


def _view(_: Any, view: memoryview) -> Reduced:
    data = view.tobytes() if view.readonly else bytearray(view.tobytes())
    return rebuilding.make_view, (data, view.format, view.shape)


def _code(_: Any, code: types.CodeType) -> Reduced:
    """cloudpickle 3.1.3 and later give all code one file name; tracebacks and `inspect` want its own."""
    maker, parts = cloudpickle._code_reduce(code)
    return maker, tuple(code.co_filename if part == "<dynamic-code>" else part for part in parts)


def _cell(_: Any, cell: Any) -> Reduced:
    if not is_full(cell):
        return types.CellType, ()
    return types.CellType, (), (cell.cell_contents,), None, None, rebuilding.set_cell


def _cached(_: Any, function: Any) -> Reduced:
    if has_name(function, function.__module__, function.__qualname__):
        return function.__qualname__
    attributes = {key: value for key, value in vars(function).items() if key not in ("__wrapped__", "cache_parameters")}
    return rebuilding.make_cached, (function.__wrapped__, function.cache_parameters(), attributes)


def _reference(_: Any, reference: Any) -> Reduced:
    there = reference()
    return (type(reference), (there,)) if there is not None else (rebuilding.dead_reference, ())


def _weak_dictionary(_: Any, values: Any) -> Reduced:
    return type(values), (dict(values.items()),)


def _named(maker: Any, arguments: Callable[[Any], Any], *options: str) -> Callable[..., Reduced]:
    def rule(_: Any, obj: Any) -> Reduced:
        if has_name(obj, obj.__module__, obj.__name__):
            return obj.__name__
        named = {name: getattr(obj, "__{}__".format(name)) for name in options}
        given = arguments(obj)
        given = given if isinstance(given, tuple) else (given,)
        return rebuilding.make_named, (obj.__module__, obj.__name__, maker, given, named)

    return rule


def _type_variable(_: Any, variable: Any) -> Reduced:
    """cloudpickle's rule takes any module for one that can be imported."""
    if has_name(variable, variable.__module__, variable.__name__):
        return getattr, (sys.modules[variable.__module__], variable.__name__)
    return cloudpickle._make_typevar, cloudpickle._decompose_typevar(variable)


def facts_of(module: ModuleType) -> Dict[str, Any]:
    """What else code asks its module for; child processes find a `python -m` module again by its spec."""
    facts = {key: vars(module)[key] for key in FACTS if isinstance(vars(module).get(key), (str, list))}
    spec = getattr(module, "__spec__", None)
    if spec is not None and module.__name__ == "__main__" and "__file__" in facts:
        facts["__spec__"] = importlib.machinery.ModuleSpec(spec.name, None)
    return facts


def _sources_of(files: Set[str]) -> Dict[str, str]:
    texts = {name: "".join(linecache.getlines(name)) for name in sorted(files)}
    return {name: text for name, text in texts.items() if text}


# Objects that a module holds under a name


def _instance(pickler: Any, obj: Any) -> Reduced:
    """An object of a class that travels by value; it may be a global, whose identity counts."""
    kind = type(obj)
    name = _global_name(obj, kind.__module__)
    if kind in copyreg.dispatch_table or (name is None and _reduces_plainly(kind)):
        return NotImplemented
    reduced = obj.__reduce_ex__(5)
    if isinstance(reduced, str) and has_name(obj, getattr(obj, "__module__", None), reduced):
        return reduced
    if isinstance(reduced, str):  # its name: without a module to import, its content must travel
        reduced = (copyreg.__newobj__, (kind,), getattr(obj, "__dict__", None))  # type: ignore[attr-defined]
    everywhere = _is_marker(obj)
    if name is None or any(part is not None for part in reduced[3:]) or (pickler.homeward and not everywhere):
        return reduced
    maker, args, state = (*reduced, None)[:3]
    made = (kind.__module__, name, kind, everywhere, maker, args)
    return rebuilding.take_global, made, state, None, None, rebuilding.fill_object


def _global_name(obj: Any, module: str) -> Optional[str]:
    names = vars(sys.modules[module])
    return next((name for name, value in list(names.items()) if value is obj), None)


def _reduces_plainly(kind: Any) -> bool:
    return kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__


def _marker(_: Any, obj: Any) -> Reduced:
    """A plain `object()`, or an object without a state: known by its name, if a module holds it."""
    if not _is_marker(obj):
        return NotImplemented
    for module, name in _places_of(obj):
        if importable(module):
            return getattr, (sys.modules[module], name)
        return rebuilding.take_global, (module, name, type(obj), True, object.__new__, (type(obj),))
    return NotImplemented


def _has_no_state(kind: Any) -> bool:
    """Whether instances of a class written in Python may have no state, and are then known by their place alone."""
    written_in_python = kind.__flags__ & 1 << 9
    plain = _reduces_plainly(kind) and kind.__init__ is object.__init__ and kind.__base__ is object
    if not (written_in_python and plain):
        return False
    return not copyreg._slotnames(kind)  # type: ignore[attr-defined]


def _is_marker(obj: Any) -> bool:
    return type(obj) is object or (_has_no_state(type(obj)) and not getattr(obj, "__dict__", None))


def _places_of(obj: Any) -> List[Tuple[str, str]]:
    """Where a module holds this very object: its class's own module, or any for a plain `object()`."""
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
    functools._lru_cache_wrapper: _cached,
    typing.NewType: _named(typing.NewType, operator.attrgetter("__name__", "__supertype__")),
    typing.TypeVar: _type_variable,
    typing.ParamSpec: _named(typing.ParamSpec, operator.attrgetter("__name__"), "bound", "covariant", "contravariant"),
    object: _marker,
    Sources: lambda pickler, _: (rebuilding.learn_sources, (_sources_of(pickler.files),)),
}
for _new, _parts in (("TypeVarTuple", ("__name__",)), ("TypeAliasType", ("__name__", "__value__"))):
    if hasattr(typing, _new):  # of Python 3.11, and of 3.12
        _RULES[getattr(typing, _new)] = _named(getattr(typing, _new), operator.attrgetter(*_parts))


# Rules for types of packages, by their names: nothing is imported for them


def _mapped(_: Any, array: Any) -> Reduced:
    """A `numpy.memmap`. Its data travel too, since the file may not be there."""
    plain = array.view(importlib.import_module("numpy").ndarray)
    if type(array.base).__name__ != "mmap" or not array.filename:  # a part of one, or without a file
        return plain.__reduce_ex__(5)
    array.flush()
    there = os.stat(array.filename)
    mode = array.mode if array.mode in ("r", "c") else "r+"
    known = (str(array.filename), there.st_size, there.st_mtime_ns, mode, array.offset, plain)
    return rebuilding.make_mapped, known


def _array(_: Any, array: Any) -> Reduced:
    """A subclass of numpy's array, whose own attributes numpy forgets."""
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


def _of_ray(what: str, advice: str) -> Callable[..., Reduced]:
    def rule(pickler: Any, _: Any) -> Reduced:
        if pickler.homeward:
            raise DeadValue("{} means nothing when its Ray cluster has ended: {}".format(what, advice))
        return NotImplemented

    return rule


_BY_NAME: Dict[str, Callable[..., Reduced]] = {
    **dict.fromkeys(_OF_DILL, _by_dill),
    "_thread.lock": lambda *_: (_thread.allocate_lock, ()),  # a new, free one: who held it is not there
    "_thread.RLock": lambda *_: (_thread.RLock, ()),
    "numpy.memmap": _mapped,
    "numpy.ndarray": _array,
    "ray.remote_function.RemoteFunction": _remote_function,
    "ray.actor.ActorClass": _actor_class,
    "ray.ObjectRef": _of_ray("an ObjectRef", "return what `ray.get(...)` gives for it"),
    "ray.ObjectRefGenerator": _of_ray("an ObjectRefGenerator", "return what `ray.get(...)` gives for its references"),
    "ray.actor.ActorHandle": _of_ray(
        "an actor handle (ActorHandle)", "return what its methods give, by `ray.get(...)`"
    ),
}


# Which rule


@functools.lru_cache(maxsize=4096)
def rule_for(kind: Any) -> Optional[Rule]:
    """The rule for objects of this type; None leaves them to pickle."""
    if kind in _RULES:
        return _RULES[kind]
    if hasattr(kind, "reduce_for_run"):
        return lambda _, obj: obj.reduce_for_run()
    known = (_BY_NAME.get("{}.{}".format(base.__module__, base.__qualname__)) for base in kind.__mro__)
    return next((rule for rule in known if rule is not None), None) or _by_nature(kind)


def _by_nature(kind: Any) -> Optional[Rule]:
    for base, rule in _BY_BASE:
        if issubclass(kind, base):
            return rule
    if not importable(kind.__module__) and kind.__module__ in sys.modules:
        return _instance
    return _marker if _has_no_state(kind) else None


_BY_BASE: Tuple[Tuple[type, Optional[Rule]], ...] = (
    (BaseException, lambda _, error: failures.reduce(error)),
    (ModuleType, _module),
    (io.StringIO, None),
    (io.BytesIO, None),
    (io.IOBase, _file),
)
