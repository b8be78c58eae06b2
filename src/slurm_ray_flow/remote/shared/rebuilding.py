"""What `pickler` took apart, made again: functions, classes, enums, and the modules that they live in.

A module that can't be imported by name (`__main__`, a file that Prefect loaded by its path) has a *namespace*: in the
driver the globals of a module of that name, so that everything in it is found by its name, also by child processes; at
home a dictionary of its own, so that what comes home changes nothing there. What home has already (a class, a
function with the same code) is taken instead of a copy.
"""

from __future__ import annotations

import abc
import builtins
import contextlib
import enum
import functools
import importlib
import linecache
import os
import sys
import types
import weakref
from types import FunctionType, ModuleType
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from slurm_ray_flow.remote.shared import pickling

ORIGIN = "__namespace__"
"""The global in which functions that came home keep what `namespace` was asked for."""
_in_driver = False
_folders: List[Tuple[str, str]] = []
_isolated: Dict[str, Dict[str, Any]] = {}
_unfilled: Dict[int, Any] = {}
"""What was made and waits for its state. What is not here was there before, and keeps its own."""


def become_driver() -> None:
    """Give this process an empty `__main__`, in which what arrives has its names: what the driver does first."""
    global _in_driver  # noqa: PLW0603 - one process, one `__main__`
    sys.modules["__main__"] = ModuleType("__main__")
    _in_driver = True


def map_folders(folders: Sequence[Tuple[str, str]]) -> None:
    """Say where home's folders are here: pairs of a folder at home and its place in this process."""
    _folders[:] = sorted(folders, key=lambda pair: len(pair[0]), reverse=True)


def place_of(path: str) -> str:
    """Where a file of home's is here; the path itself if it did not travel."""
    for folder, place in _folders:
        if path == folder or path.startswith(folder.rstrip(os.sep) + os.sep):
            return os.path.join(place, os.path.relpath(path, folder)) if path != folder else place
    return path


def namespace(name: str, facts: Dict[str, Any], by_name: bool = False) -> Dict[str, Any]:
    """The globals of a module: in the driver its own, at home a dictionary for what has just arrived.

    Args:
        name: the module.
        facts: its `__package__`, `__file__` and the like at home.
        by_name: whether it can be imported.
    """
    if not _in_driver:
        own = vars(sys.modules[name]) if by_name and name in sys.modules else {}
        return {**own, "__name__": name, "__builtins__": builtins, **facts, ORIGIN: (name, facts, by_name)}
    if by_name:
        try:
            return vars(importlib.import_module(name))
        except Exception:  # it is not here, or can't be imported: what arrived may do without it
            return _isolated.setdefault(name, {"__name__": name, "__builtins__": builtins, **facts})
    module = sys.modules.get(name)
    if module is None:
        module = sys.modules[name] = ModuleType(name)
        pickling.made_by_hand.add(name)
        _travels_by_value_in_ray(module)
    names = vars(module)
    for key, value in facts.items():
        if names.get(key) is None:
            names[key] = place_of(value) if key == "__file__" else value
    names.setdefault("__builtins__", builtins)
    return names


def _travels_by_value_in_ray(module: ModuleType) -> None:
    for name in ("cloudpickle", "ray.cloudpickle"):
        if name in sys.modules:
            sys.modules[name].register_pickle_by_value(module)


def module_of_namespace(name: str, facts: Dict[str, Any]) -> Any:
    """The module itself, where code refers to it as an object."""
    namespace(name, facts)
    return sys.modules.get(name)


def make_function(
    where: Tuple[str, str, bool], code: types.CodeType, names: Dict[str, Any], closure: Optional[Tuple[Any, ...]]
) -> FunctionType:
    """A function that `fill_function` completes, or the one of this process that it is.

    Args:
        where: its module, the name under which that has it, or "", and whether it comes home.
        code, names, closure: as for a function; `names` are its globals.
    """
    module, name, homeward = where
    found = pickling.found(module, name) if name and (_in_driver or homeward) else None
    if isinstance(found, FunctionType) and found.__code__ == code:
        return found
    names.setdefault("__builtins__", builtins)
    made = FunctionType(code, names, code.co_name, None, closure)
    _unfilled[id(made)] = made
    return made


def fill_function(function: FunctionType, state: Dict[str, Any]) -> None:
    """Give a function of `make_function` its attributes, and its namespace the globals that it uses."""
    if _unfilled.pop(id(function), None) is None:
        return
    _add_globals(function.__globals__, state["globals"], state["replace"])
    vars(function).update(state["dict"])
    for name, value in state["attributes"].items():
        setattr(function, name, value)


def _add_globals(names: Dict[str, Any], values: Dict[str, Any], replace: bool = False) -> None:
    """What is there already stays: of two payloads of one call, the objects of the first are meant.

    A module that was imported is as its file made it, and gets what home has changed since: there, `replace`.
    """
    for name, value in values.items():
        if replace or not _in_driver or names.get(name) is None:
            names[name] = value


def set_cell(cell: Any, state: Tuple[Any]) -> None:
    """Fill a variable that functions share."""
    (cell.cell_contents,) = state


Where = Tuple[str, str, str]
"""Where a class is found: its module, its qualified name there ("" if it has none), and its tracker, by which this
process knows the classes that it has sent or received."""


def make_class(where: Where, meta: Any, name: str, bases: Tuple[Any, ...], body: Dict[str, Any]) -> type:
    """A class that `fill_class` completes, or the one of this process that it is.

    Args:
        where: where it is found.
        meta, name, bases: as for `type`.
        body: what must be there when it is made.
    """
    return _known_class(where) or _adopted(where, _skeleton(meta, name, bases, body))


def _known_class(where: Where) -> Optional[type]:
    module, qualified_name, tracker = where
    cloudpickle: Any = importlib.import_module("cloudpickle.cloudpickle")
    known_class = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if known_class is None and qualified_name:
        known_class = pickling.found(module, qualified_name)
    return known_class if isinstance(known_class, type) else None


def _adopted(where: Where, made: type) -> type:
    module, qualified_name, tracker = where
    cloudpickle: Any = importlib.import_module("cloudpickle.cloudpickle")
    cloudpickle._lookup_class_or_track(tracker, made)
    if _in_driver and qualified_name and "." not in qualified_name:
        namespace(module, {})[qualified_name] = made
    _unfilled[id(made)] = made
    return made


def _skeleton(meta: Any, name: str, bases: Tuple[Any, ...], body: Dict[str, Any]) -> Any:
    """The class without what its author's code would do now: `__init_subclass__`, and `__new__` of a metaclass.

    That has happened at home, where its result was pickled.
    """
    with _quiet_bases(bases):
        if pickling.importable(meta.__module__):
            made: Any = types.new_class(name, bases, {"metaclass": meta}, lambda names: names.update(body))
            return made
        library = next(kind for kind in meta.__mro__ if pickling.importable(kind.__module__))
        made = library.__new__(meta, name, bases, body)
        library.__init__(made, name, bases, body)
        return made


@contextlib.contextmanager
def _quiet_bases(bases: Sequence[Any]) -> Iterator[None]:
    """Within the block, a subclass of classes that came by value registers itself nowhere."""
    hook = "__init_subclass__"
    kinds = {kind for base in bases if isinstance(base, type) for kind in base.__mro__ if hook in vars(kind)}
    muted = [(kind, vars(kind)[hook]) for kind in kinds if not pickling.importable(kind.__module__)]
    for kind, _ in muted:
        type.__setattr__(kind, hook, classmethod(lambda *_, **__: None))
    try:
        yield
    finally:
        for kind, original in muted:
            type.__setattr__(kind, hook, original)


def fill_class(kind: Any, state: Dict[str, Any]) -> None:
    """Give a class of `make_class` or `make_enum` the rest of its body, which may mention the class."""
    if _unfilled.pop(id(kind), None) is None:
        return
    for name, value in state["body"].items():
        type.__setattr__(kind, name, value)
    for subclass in state["registered"]:
        abc.ABCMeta.register(kind, subclass)
    for name, attributes in state["members"].items():
        vars(kind.__members__[name]).update(attributes)
    if state["globals"]:
        _add_globals(namespace(kind.__module__, {}), state["globals"])


def make_enum(
    where: Where,
    meta: Any,
    name: str,
    bases: Tuple[Any, ...],
    body: Dict[str, Any],
    members: Dict[str, Tuple[Any, Any]],
    named: Dict[str, Any],
) -> type:
    """An enum whose members are made from what they are, and not by its author's `__new__`, which wants other values.

    Args:
        where, meta, name, bases, body: as for `make_class`.
        members: for each name what its data type is made of, and its value.
        named: arguments of the metaclass.
    """
    known = _known_class(where)
    if known is not None:
        return known

    def new_member(kind: Any, *given: Any) -> Any:
        data, value = given[0] if len(given) == 1 else given
        base = kind._member_type_
        made = object.__new__(kind) if base is object else base.__new__(kind, data)
        made._value_ = value
        return made

    names = meta.__prepare__(name, bases, **named)
    for key, value in {**body, "__new__": new_member, **members}.items():
        names[key] = value
    return _adopted(where, enum.EnumMeta.__new__(meta, name, bases, names, **named))


def make_typed_dict(
    where: Where, maker: Any, name: str, bases: Tuple[Any, ...], fields: Dict[str, Any], total: bool
) -> type:
    """A TypedDict, whose metaclass wants its makers to be asked."""
    body = {"__annotations__": fields, "__module__": where[0]}
    return _known_class(where) or _adopted(
        where, types.new_class(name, (maker, *bases), {"total": total}, lambda names: names.update(body))
    )


def make_named(module: str, name: str, maker: Callable[..., Any], args: Tuple[Any, ...], named: Dict[str, Any]) -> Any:
    """An object that is known by its name (a NewType, a ParamSpec): this process's own, else a new one."""
    value = pickling.found(module, name)
    made = maker(*args, **named)
    if type(value) is type(made):
        return value
    with contextlib.suppress(AttributeError, TypeError):
        made.__module__ = module
    return made


def take_global(module: str, name: str, kind: type, everywhere: bool, maker: Any, args: Tuple[Any, ...]) -> Any:
    """The global of this name, where it is the object that is meant, else a new object for `fill_object`.

    Args:
        module, name: where it stands.
        kind: its type.
        everywhere: whether it has no state that could be another one here, as a marker has none.
        maker, args: what makes a new one.
    """
    found = pickling.found(module, name)
    if type(found) is kind and (everywhere or _in_driver):
        return found
    made = maker(*args)
    _unfilled[id(made)] = made
    return made


def fill_object(made: Any, state: Any) -> None:
    """Give an object of `take_global` its state, as pickle does."""
    if _unfilled.pop(id(made), None) is None or state is None:
        return
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
        return
    slots: Dict[str, Any] = {}
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    vars(made).update(state or {}) if state else None
    for name, value in (slots or {}).items():
        setattr(made, name, value)


def make_view(data: Any, form: str, shape: Tuple[int, ...]) -> memoryview:
    """A memoryview over memory of its own."""
    view: Any = memoryview(data)
    return view.cast(form, shape) if view.nbytes and (form != "B" or len(shape) != 1) else view  # type: ignore[no-any-return]


def make_cached(function: Any, parameters: Dict[str, Any], attributes: Dict[str, Any]) -> Any:
    """A function of `functools.lru_cache`, with an empty cache."""
    made = functools.lru_cache(**parameters)(function)
    vars(made).update(attributes)
    return made


def make_remote(options: Dict[str, Any], plain: Any) -> Any:
    """What `ray.remote` makes of a function or a class."""
    ray: Any = importlib.import_module("ray")
    return ray.remote(**options)(plain) if options else ray.remote(plain)


def make_mapped(path: str, size: int, mtime_ns: int, mode: str, offset: int, array: Any) -> Any:
    """The `numpy.memmap` of a file that is here and as it was at home, else the array that it held."""
    numpy: Any = importlib.import_module("numpy")
    with contextlib.suppress(OSError, ValueError):
        there = os.stat(path)
        if (there.st_size, there.st_mtime_ns) == (size, mtime_ns):
            order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            return numpy.memmap(path, dtype=array.dtype, mode=mode, offset=offset, shape=array.shape, order=order)
    return array


def fill_array(array: Any, state: Tuple[Any, Dict[str, Any]]) -> None:
    """Give an array of a subclass its data and its attributes."""
    array.__setstate__(state[0])
    vars(array).update(state[1])


def dead_reference() -> Any:
    """A weak reference to something that is no more."""
    return weakref.ref(_Gone())


class _Gone:
    pass


def learn_sources(sources: Dict[str, str]) -> Any:
    """Keep the sources of functions that came by value, as home had them, for tracebacks and `inspect`."""
    for name, text in sources.items():
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    return None
