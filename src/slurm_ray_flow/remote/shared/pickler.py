"""The pickler of functions, arguments and outcomes: cloudpickle's, with rules of its own.

- An object that a fresh interpreter can import is pickled by name; a module's state at home is not pickled. Functions
  and classes of `__main__` (a script, a notebook, the REPL) and of other modules that can't be imported are pickled by
  value, and share one namespace in the run (`rebuilding`).
- An object with a name at home (a class, a function, a marker such as `MISSING = object()`) stays one and the same
  object in the function, in its arguments and in its outcome.
- A decorated function is the plain one in the run. Arrays travel as out-of-band buffers. dill pickles the objects that
  cloudpickle refuses (`super` objects, binary files in a function's globals).
"""

from __future__ import annotations

import dis
import enum
import functools
import io
import re
import sys
import types
from types import CodeType, FunctionType, ModuleType
from typing import Any, Dict, FrozenSet, List, Optional, Set, Tuple

from cloudpickle import cloudpickle  # type: ignore[import-untyped,unused-ignore]

from slurm_ray_flow.remote.shared import rebuilding
from slurm_ray_flow.remote.shared.pickle_rules import MODULE_ATTRIBUTES, Reduced, attributes_of, is_full, rule_for
from slurm_ray_flow.remote.shared.pickling import by_name, importable, lookup

_IDENTIFIER = re.compile(r"[^\W\d]\w*")
_GLOBAL_OPCODES = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_DYNAMIC_LOOKUPS = frozenset({"globals", "eval", "exec"})
"""Functions that use one of these may use any global."""
_DATA_TYPES = (object, int, str, float, bytes, complex, tuple)
_ENUM_ATTRIBUTES = {
    "_member_names_", "_member_map_", "_member_type_", "_value2member_map_", "_unhashable_values_",
    "_unhashable_values_map_", "_hashable_values_", "_value_repr_", "__dict__", "__weakref__", "__module__",
    "__qualname__", "_abc_impl",
}  # fmt: skip


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc,unused-ignore]
    """Pickles one function, its arguments or its outcome.

    Args:
        file: the file to write to.
        buffer_callback: gets the buffers of arrays.
        homeward: whether it is an outcome, which may have no object that is useless at home.
    """

    def __init__(self, file: Any, buffer_callback: Any = None, homeward: bool = False) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self.homeward = homeward
        self.files: Set[str] = set()
        self.whole_namespaces = True
        self.modules: Set[str] = set()

    def reducer_override(self, obj: Any) -> Reduced:
        """The reduced form of an object; NotImplemented leaves it to pickle."""
        if issubclass(type(obj), type):  # `isinstance` would ask a proxy's target
            return self._class(obj)
        if type(obj) is FunctionType:
            return self._function(obj)
        rule = rule_for(type(obj))  # type: ignore[arg-type]
        return NotImplemented if rule is None else rule(self, obj)

    # Functions

    def _function(self, function: FunctionType) -> Reduced:
        if _goes_by_name(function):
            self.modules.add(function.__module__)
            return _public_name(function)
        code, namespace = function.__code__, function.__globals__
        module = _module_of(namespace)
        name = function.__name__ if module and _has_under_own_name(namespace, function) else ""
        imported = module is not None and by_name(module)
        imported = namespace[rebuilding.ORIGIN][2] if rebuilding.ORIGIN in namespace else imported
        if not imported:
            self.files.add(code.co_filename)
        used = self._used_globals(function, module, imported)
        if name:
            used[name] = function
        state = {
            "globals": used,
            "replace": imported,
            "modules": _submodules(function, namespace),
            "dict": vars(function),
            "attributes": {key: getattr(function, key) for key in _ATTRIBUTES},
        }
        origin = (namespace.get("__name__") or "", name, self.homeward)
        args = (origin, code, self._base(namespace, module), function.__closure__)
        return rebuilding.make_function, args, state, None, None, rebuilding.fill_function

    def _base(self, namespace: Dict[str, Any], module: Optional[ModuleType]) -> Any:
        """The object that is pickled in place of a function's globals, one for all functions that share them."""
        base = self.globals_ref.get(id(namespace))
        if base is None:
            if rebuilding.ORIGIN in namespace:
                base = _Globals(*namespace[rebuilding.ORIGIN])
            elif module is None:
                base = {key: namespace[key] for key in ("__name__", *MODULE_ATTRIBUTES) if key in namespace}
            else:
                base = _Globals(module.__name__, attributes_of(module), by_name(module))
            self.globals_ref[id(namespace)] = base
        return base

    def _used_globals(self, function: FunctionType, module: Optional[ModuleType], imported: bool) -> Dict[str, Any]:
        """The globals that a function uses. A module that is imported in the run has those that can't be pickled."""
        namespace = function.__globals__
        names = _global_names(function.__code__)
        any_global = not names.isdisjoint(_DYNAMIC_LOOKUPS - namespace.keys())
        if self.whole_namespaces and module and not imported and any_global:
            return {name: value for name, value in namespace.items() if name[:2] != "__" and _can_travel(value)}
        used = _globals_in_annotations(function, namespace)
        used.update((name, namespace[name]) for name in sorted(names) if name in namespace)
        if imported and self.whole_namespaces:
            return {name: value for name, value in used.items() if isinstance(value, _NAMED) or _can_travel(value)}
        return used

    # Classes

    def _class(self, kind: Any) -> Reduced:
        if kind in _BUILTIN_CLASSES:
            return cloudpickle._class_reduce(kind)
        if _goes_by_name(kind):
            self.modules.add(kind.__module__)
            return _public_name(kind)
        module = sys.modules.get(kind.__module__)
        has_global_name = module is not None and lookup(kind.__module__, kind.__qualname__) is kind
        tracker = cloudpickle._get_or_create_tracker_id(kind)
        location = (kind.__module__, kind.__qualname__ if has_global_name else "", tracker)
        if type(kind).__name__ == "_TypedDictMeta":
            return _typed_dict(kind, location)
        if isinstance(kind, enum.EnumMeta) and kind.__members__ and getattr(kind, "_member_type_", None) in _DATA_TYPES:
            return self._enum(kind, location)
        state, _ = cloudpickle._class_getstate(kind)
        body = _initial_body(kind)
        arguments = (location, type(kind), kind.__name__, kind.__bases__, body)
        return rebuilding.make_class, arguments, _class_state(kind, state, body), None, None, rebuilding.fill_class

    def _enum(self, kind: Any, location: Tuple[str, str, str]) -> Reduced:
        members = {
            name: (_data_of(member, kind._member_type_), member.value) for name, member in kind.__members__.items()
        }
        keywords = {"boundary": kind._boundary_} if hasattr(kind, "_boundary_") else {}
        body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        rest = {key: value for key, value in vars(kind).items() if key not in _ENUM_ATTRIBUTES and key not in members}
        state = _class_state(kind, rest, body)
        state["members"] = {
            name: {key: value for key, value in vars(member).items() if key not in _MEMBER_ATTRIBUTES}
            for name, member in kind.__members__.items()
        }
        arguments = (location, type(kind), kind.__name__, kind.__bases__, body, members, keywords)
        return rebuilding.make_enum, arguments, state, None, None, rebuilding.fill_class


_NAMED = (FunctionType, type, ModuleType)
_ATTRIBUTES = ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__", "__annotations__")
_MEMBER_ATTRIBUTES = {"__objclass__", "_name_", "_sort_order_", "__sort_order__"}
_BUILTIN_CLASSES = {type(None), type(Ellipsis), type(NotImplemented), *cloudpickle._BUILTIN_TYPE_NAMES}


class _Globals:
    """Pickled in place of a module's globals."""

    def __init__(self, *of: Any) -> None:
        self._of = of

    def __reduce__(self) -> Reduced:
        return rebuilding.namespace, self._of


def _module_of(namespace: Dict[str, Any]) -> Optional[ModuleType]:
    """The module whose globals these are."""
    module = sys.modules.get(namespace.get("__name__", ""))
    if module is None or vars(module) is not namespace or cloudpickle._is_registered_pickle_by_value(module):
        return None
    return module


def _goes_by_name(obj: Any) -> bool:
    location = cloudpickle._lookup_module_and_qualname(obj)
    return location is not None and by_name(location[0])


def _public_name(obj: Any) -> Reduced:
    """Reduce a public object of this package to its name: a run has all public names, and no others."""
    package: Any = sys.modules["slurm_ray_flow"]
    name: str = obj.__name__
    if str(obj.__module__).startswith("slurm_ray_flow.") and getattr(package, name, None) is obj:
        return getattr, (package, name)
    return NotImplemented


def _has_under_own_name(namespace: Dict[str, Any], function: FunctionType) -> bool:
    """Whether these globals have a function under its own name, plain or decorated by this package."""
    value = namespace.get(function.__name__)
    decorated = hasattr(type(value), "reduce_for_run") and getattr(value, "function", None) is function
    return value is function or decorated


@functools.lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> Tuple[FrozenSet[str], FrozenSet[str]]:
    """The globals that a code object and the code inside it use; and all names and words of strings in them."""
    global_names = {step.argval for step in dis.get_instructions(code) if step.opname in _GLOBAL_OPCODES}
    all_names = {*code.co_names}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            nested = _names_in(constant)
            global_names |= nested[0]
            all_names |= nested[1]
        elif isinstance(constant, str):
            all_names.update(_IDENTIFIER.findall(constant))
    return frozenset(global_names), frozenset(all_names)


def _global_names(code: CodeType) -> FrozenSet[str]:
    return _names_in(code)[0]


def _submodules(function: FunctionType, namespace: Dict[str, Any]) -> List[ModuleType]:
    """The submodules that a function uses as attributes of their packages, so that the run imports them, too."""
    code = function.__code__
    values = [namespace[name] for name in _global_names(code) if name in namespace]
    values += [cell.cell_contents for cell in function.__closure__ or () if is_full(cell)]
    packages = [value for value in values if isinstance(value, ModuleType) and hasattr(value, "__path__")]
    all_names = _names_in(code)[1]
    return [
        sys.modules[name]
        for package in packages
        for name in sorted(sys.modules)
        if name.startswith(package.__name__ + ".")
        and all_names.issuperset(name[len(package.__name__) + 1 :].split("."))
        and importable(name)
    ]


def _globals_in_annotations(owner: Any, namespace: Dict[str, Any]) -> Dict[str, Any]:
    """The globals that string annotations name; `from __future__ import annotations` makes all of them strings."""
    annotations = vars(owner).get("__annotations__", {}) if isinstance(owner, type) else owner.__annotations__
    texts = [text for text in annotations.values() if isinstance(text, str)] if isinstance(annotations, dict) else []
    words = sorted({word for text in texts for word in _IDENTIFIER.findall(text)})
    return {word: namespace[word] for word in words if word in namespace}


def _can_travel(value: Any) -> bool:
    pickler = ValuePickler(io.BytesIO(), lambda _: False)
    pickler.whole_namespaces = False
    try:
        pickler.dump(value)
    except Exception:
        return False
    return True


def _initial_body(kind: Any) -> Dict[str, Any]:
    """The part of a class's body that its creation needs."""
    body: Dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    if "__orig_bases__" in vars(kind):
        body["__orig_bases__"] = vars(kind)["__orig_bases__"]
    slots = vars(kind).get("__slots__")
    if slots is not None:
        body["__slots__"] = slots if isinstance(slots, (str, tuple, list, dict)) else tuple(_own_slots(kind))
    if isinstance(vars(kind).get("__dict__"), property):
        body["__dict__"] = vars(kind)["__dict__"]
    return body


def _own_slots(kind: Any) -> List[str]:
    return [key for key, value in vars(kind).items() if _is_slot(value, kind)]


def _is_slot(value: Any, kind: Any) -> bool:
    return isinstance(value, types.MemberDescriptorType) and value.__objclass__ is kind


def _class_state(kind: Any, state: Dict[str, Any], body: Dict[str, Any]) -> Dict[str, Any]:
    """The state of a class for `rebuilding.fill_class`."""
    rest = {key: value for key, value in state.items() if key not in body and not _is_slot(value, kind)}
    module = sys.modules.get(kind.__module__)
    used_globals = _globals_in_annotations(kind, vars(module)) if module and not by_name(module) else {}
    return {"registered": rest.pop("_abc_impl", []), "body": rest, "members": {}, "globals": used_globals}


def _data_of(member: Any, base: type) -> Any:
    """An enum's member as a plain object of its data type."""
    if base is object:
        return None
    return str.__str__(member) if base is str else base.__new__(base, member)


def _typed_dict(kind: Any, location: Tuple[str, str, str]) -> Reduced:
    maker = sys.modules[type(kind).__module__].TypedDict  # typing's, or that of typing_extensions
    generic = tuple(base for base in getattr(kind, "__orig_bases__", ()) if hasattr(base, "__origin__"))
    arguments = (location, maker, kind.__name__, generic, dict(kind.__annotations__), kind.__total__)
    attributes = ("__required_keys__", "__optional_keys__", "__doc__", "__qualname__", "__annotations__")
    state = {key: getattr(kind, key) for key in attributes if hasattr(kind, key)}
    return rebuilding.make_typed_dict, arguments, _class_state(kind, state, {}), None, None, rebuilding.fill_class
