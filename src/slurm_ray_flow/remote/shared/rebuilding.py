"""The functions that pickles of `pickler` call: they make functions, classes, enums and their modules again.

A module that can't be imported by name (`__main__`, a file that Prefect loaded by its path) has a *namespace*. In the
driver it is the globals of a module of that name, where its objects are found by their names, also by child processes.
At home it is a separate dictionary, so that an outcome changes nothing there. An object that home has already (a class,
a function with the same code) is used instead of a copy.
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
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from slurm_ray_flow.remote.shared import payload, pickling

ORIGIN = "__namespace__"
"""The global in which functions that came home keep the arguments of their `namespace`."""
_in_driver = False
_values = ""
_folders: List[Tuple[str, str]] = []
_failed_imports: Dict[str, Dict[str, Any]] = {}
_unfilled: Dict[int, Any] = {}
"""New objects by their ids, until they get their state. Others existed before, and keep their own state."""


def become_driver() -> None:
    """Give this process an empty `__main__` for the objects of home's; the driver does this first."""
    global _in_driver  # noqa: PLW0603 - one process, one `__main__`
    sys.modules["__main__"] = ModuleType("__main__")
    _in_driver = True


def map_folders(pairs: Sequence[Tuple[str, str]]) -> None:
    """Set the folders of the run that hold home's files: pairs of a folder at home and one here."""
    _folders[:] = sorted(pairs, key=lambda pair: len(pair[0]), reverse=True)


def local_path_of(path: str) -> str:
    """The path here of a file of home's; the path itself if the file did not travel."""
    for folder, local_folder in _folders:
        if path == folder or path.startswith(folder.rstrip(os.sep) + os.sep):
            return os.path.join(local_folder, os.path.relpath(path, folder)) if path != folder else local_folder
    return path


def values_are_in(folder: str) -> None:
    """Set the folder with the values of other runs that arguments of this run refer to."""
    global _values  # noqa: PLW0603 - one process, one run
    _values = folder


def value_there(sha256: str) -> Any:
    """The value of another run, whose outcome lies in the run's folder under its digest.

    Raises:
        DamagedPayload: the file has other bytes.
    """
    return payload.read(os.path.join(_values, sha256), pickling.load, sha256=sha256)["value"]


def namespace(name: str, facts: Dict[str, Any], by_name: bool = False) -> Dict[str, Any]:
    """The globals of a module: in the driver its own, at home a new dictionary.

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
        except Exception:  # it is missing or fails; the objects may work without it
            return _failed_imports.setdefault(name, {"__name__": name, "__builtins__": builtins, **facts})
    module = sys.modules.get(name)
    if module is None:
        module = sys.modules[name] = ModuleType(name)
        pickling.modules_without_file.add(name)
        _register_by_value_in_ray(module)
    globals_ = vars(module)
    for key, value in facts.items():
        if globals_.get(key) is None:
            globals_[key] = local_path_of(value) if key == "__file__" else value
    globals_.setdefault("__builtins__", builtins)
    return globals_


def _register_by_value_in_ray(module: ModuleType) -> None:
    for name in ("cloudpickle", "ray.cloudpickle"):
        if name in sys.modules:
            sys.modules[name].register_pickle_by_value(module)


def module_of_namespace(name: str, facts: Dict[str, Any]) -> Any:
    """The module itself, for code that refers to it as an object."""
    namespace(name, facts)
    return sys.modules.get(name)


def make_function(
    origin: Tuple[str, str, bool], code: types.CodeType, namespace: Dict[str, Any], closure: Optional[Tuple[Any, ...]]
) -> FunctionType:
    """A new function for `fill_function`, or the same function of this process.

    Args:
        origin: its module, its name there or "", and whether it comes home.
        code, namespace, closure: as for a function; `namespace` are its globals.
    """
    module, name, homeward = origin
    existing = pickling.lookup(module, name) if name and (_in_driver or homeward) else None
    if isinstance(existing, FunctionType) and existing.__code__ == code:
        return existing
    namespace.setdefault("__builtins__", builtins)
    function = FunctionType(code, namespace, code.co_name, None, closure)
    _unfilled[id(function)] = function
    return function


def fill_function(function: FunctionType, state: Dict[str, Any]) -> None:
    """Set the attributes of a function of `make_function`, and in its namespace the globals that it uses."""
    if _unfilled.pop(id(function), None) is None:
        return
    _add_globals(function.__globals__, state["globals"], state["replace"])
    vars(function).update(state["dict"])
    for name, value in state["attributes"].items():
        setattr(function, name, value)


def _add_globals(namespace: Dict[str, Any], values: Dict[str, Any], replace: bool = False) -> None:
    """Set globals that are missing: a call's second payload must not replace the objects of its first.

    An imported module has the values of its file: `replace` sets those that home has changed since.
    """
    for name, value in values.items():
        if replace or not _in_driver or namespace.get(name) is None:
            namespace[name] = value


def set_cell(cell: Any, state: Tuple[Any]) -> None:
    """Set the value of a closure's cell."""
    (cell.cell_contents,) = state


ClassLocation = Tuple[str, str, str]
"""A class's module, its qualified name there ("" if it has none), and its tracker: cloudpickle's id of the class in
processes that have sent or received it."""


def make_class(location: ClassLocation, meta: Any, name: str, bases: Tuple[Any, ...], body: Dict[str, Any]) -> type:
    """A new class for `fill_class`, or the same class of this process.

    Args:
        location: its module, name and tracker.
        meta, name, bases: as for `type`.
        body: the part of its body that its creation needs.
    """
    return _existing_class(location) or _register_class(location, _new_class(meta, name, bases, body))


def _existing_class(location: ClassLocation) -> Optional[type]:
    module, qualified_name, tracker = location
    cloudpickle: Any = importlib.import_module("cloudpickle.cloudpickle")
    known_class = cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID.get(tracker)
    if known_class is None and qualified_name:
        known_class = pickling.lookup(module, qualified_name)
    return known_class if isinstance(known_class, type) else None


def _register_class(location: ClassLocation, kind: type) -> type:
    module, qualified_name, tracker = location
    cloudpickle: Any = importlib.import_module("cloudpickle.cloudpickle")
    cloudpickle._lookup_class_or_track(tracker, kind)
    if _in_driver and qualified_name and "." not in qualified_name:
        namespace(module, {})[qualified_name] = kind
    _unfilled[id(kind)] = kind
    return kind


def _new_class(meta: Any, name: str, bases: Tuple[Any, ...], body: Dict[str, Any]) -> Any:
    """A class, made without calling its author's `__init_subclass__` and metaclass's `__new__`.

    Home has called them, and has pickled their results.
    """
    with _without_init_subclass(bases):
        if pickling.importable(meta.__module__):
            made: Any = types.new_class(name, bases, {"metaclass": meta}, lambda names: names.update(body))
            return made
        library = next(kind for kind in meta.__mro__ if pickling.importable(kind.__module__))
        made = library.__new__(meta, name, bases, body)
        library.__init__(made, name, bases, body)
        return made


@contextlib.contextmanager
def _without_init_subclass(bases: Sequence[Any]) -> Iterator[None]:
    """Disable `__init_subclass__` of base classes that were pickled by value."""
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
    """Add the rest of its body, which may refer to the class itself, to a class of `make_class` or `make_enum`."""
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
    location: ClassLocation,
    meta: Any,
    name: str,
    bases: Tuple[Any, ...],
    body: Dict[str, Any],
    members: Dict[str, Tuple[Any, Any]],
    keywords: Dict[str, Any],
) -> type:
    """An enum whose members are made without its author's `__new__`, which may take other values.

    Args:
        location, meta, name, bases, body: as for `make_class`.
        members: by name, the member as an object of its data type, and its value.
        keywords: arguments of the metaclass.
    """
    existing = _existing_class(location)
    if existing is not None:
        return existing

    def new_member(kind: Any, *arguments: Any) -> Any:
        data, value = arguments[0] if len(arguments) == 1 else arguments
        base = kind._member_type_
        member = object.__new__(kind) if base is object else base.__new__(kind, data)
        member._value_ = value
        return member

    names = meta.__prepare__(name, bases, **keywords)
    for key, value in {**body, "__new__": new_member, **members}.items():
        names[key] = value
    return _register_class(location, enum.EnumMeta.__new__(meta, name, bases, names, **keywords))


def make_typed_dict(
    location: ClassLocation, maker: Any, name: str, bases: Tuple[Any, ...], fields: Dict[str, Any], total: bool
) -> type:
    """A TypedDict; only `typing.TypedDict` itself can make one."""
    body = {"__annotations__": fields, "__module__": location[0]}
    return _existing_class(location) or _register_class(
        location, types.new_class(name, (maker, *bases), {"total": total}, lambda names: names.update(body))
    )


def make_named(module: str, name: str, maker: Any, args: Tuple[Any, ...], options: Dict[str, Any]) -> Any:
    """An object that its name identifies (a NewType, a ParamSpec): this process's own, else a new one."""
    existing = pickling.lookup(module, name)
    created = maker(*args, **options)
    if type(existing) is type(created):
        return existing
    with contextlib.suppress(AttributeError, TypeError):
        created.__module__ = module
    return created


def take_global(module: str, name: str, kind: type, is_marker: bool, maker: Any, args: Tuple[Any, ...]) -> Any:
    """The same global of this process, else a new object for `fill_object`.

    Args:
        module, name: the global.
        kind: its type.
        is_marker: whether it has no state, so that home's own global is the same.
        maker, args: the function that makes a new object, and its arguments.
    """
    existing = pickling.lookup(module, name)
    if type(existing) is kind and (is_marker or _in_driver):
        return existing
    created = maker(*args)
    _unfilled[id(created)] = created
    return created


def fill_object(created: Any, state: Any) -> None:
    """Set the state of an object of `take_global`, as pickle does."""
    if _unfilled.pop(id(created), None) is None or state is None:
        return
    if hasattr(created, "__setstate__"):
        created.__setstate__(state)
        return
    slots: Dict[str, Any] = {}
    if isinstance(state, tuple) and len(state) == 2:
        state, slots = state
    vars(created).update(state or {}) if state else None
    for name, value in (slots or {}).items():
        setattr(created, name, value)


def make_view(data: Any, form: str, shape: Tuple[int, ...]) -> memoryview:
    """A memoryview over memory of its own."""
    view: Any = memoryview(data)
    return view.cast(form, shape) if view.nbytes and (form != "B" or len(shape) != 1) else view  # type: ignore[no-any-return]


def make_cached(function: Any, parameters: Dict[str, Any], attributes: Dict[str, Any]) -> Any:
    """A function of `functools.lru_cache`, with an empty cache."""
    cached = functools.lru_cache(**parameters)(function)
    vars(cached).update(attributes)
    return cached


def make_remote(options: Dict[str, Any], plain: Any) -> Any:
    """A function or a class, decorated by `ray.remote`."""
    ray: Any = importlib.import_module("ray")
    return ray.remote(**options)(plain) if options else ray.remote(plain)


def make_mapped(path: str, size: int, mtime_ns: int, mode: str, offset: int, array: Any) -> Any:
    """The `numpy.memmap` of a file if it is here and unchanged, else the array of its data."""
    numpy: Any = importlib.import_module("numpy")
    with contextlib.suppress(OSError, ValueError):
        status = os.stat(path)
        if (status.st_size, status.st_mtime_ns) == (size, mtime_ns):
            order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
            return numpy.memmap(path, dtype=array.dtype, mode=mode, offset=offset, shape=array.shape, order=order)
    return array


def fill_array(array: Any, state: Tuple[Any, Dict[str, Any]]) -> None:
    """Set data and attributes of an array of a subclass."""
    array.__setstate__(state[0])
    vars(array).update(state[1])


def dead_reference() -> Any:
    """A weak reference to an object that no longer exists."""
    return weakref.ref(_Referent())


class _Referent:
    pass


def learn_sources(sources: Dict[str, str]) -> Any:
    """Register the sources of functions that were pickled by value, for tracebacks and `inspect`."""
    for name, text in sources.items():
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    return None
