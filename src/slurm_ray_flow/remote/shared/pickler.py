"""The pickler of functions, arguments and outcomes: cloudpickle's, with the rules below on top.

- What a fresh interpreter can import by its name goes by reference, a module without what it holds at home. Functions
  and classes of `__main__` (a script, a notebook, the REPL) and of other modules without such a name go by value, into
  a namespace that they share there (`rebuilding`).
- Whatever has a name at home (a class, a function, a marker such as `MISSING = object()`) is the same object wherever
  it comes up: in the function, in its arguments, and in what comes home.
- A decorated function is the plain one there. Arrays travel beside the pickle. What cloudpickle refuses and dill knows
  (`super` objects, binary files in a function's globals) goes by dill.
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
from slurm_ray_flow.remote.shared.pickle_rules import FACTS, Reduced, facts_of, is_full, rule_for
from slurm_ray_flow.remote.shared.pickling import by_name, found, importable

_WORD = re.compile(r"[^\W\d]\w*")
_NAMING = {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_LOOKING_UP = frozenset({"globals", "eval", "exec"})
"""Functions that use one of these may mean any global."""
_DATA_TYPES = (object, int, str, float, bytes, complex, tuple)
_OF_EVERY_ENUM = {
    "_member_names_", "_member_map_", "_member_type_", "_value2member_map_", "_unhashable_values_",
    "_unhashable_values_map_", "_hashable_values_", "_value_repr_", "__dict__", "__weakref__", "__module__",
    "__qualname__", "_abc_impl",
}  # fmt: skip


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc,unused-ignore]
    """Pickles one function, its arguments or its outcome.

    Args:
        file: what to write to.
        buffer_callback: takes the buffers of arrays.
        homeward: whether it is an outcome, in which nothing may be that is good for nothing at home.
    """

    def __init__(self, file: Any, buffer_callback: Any = None, homeward: bool = False) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self.homeward = homeward
        self.files: Set[str] = set()
        self.whole_namespaces = True

    def reducer_override(self, obj: Any) -> Reduced:
        """How an object travels; NotImplemented leaves it to pickle."""
        if issubclass(type(obj), type):  # of a proxy, `isinstance` would ask what it stands for
            return self._class(obj)
        if type(obj) is FunctionType:
            return self._function(obj)
        rule = rule_for(type(obj))  # type: ignore[arg-type]
        return NotImplemented if rule is None else rule(self, obj)

    # Functions

    def _function(self, function: FunctionType) -> Reduced:
        if _goes_by_name(function):
            return _public_name(function)
        code, names = function.__code__, function.__globals__
        module = _owner(names)
        name = function.__name__ if module and _holds(names, function) else ""
        imported = module is not None and by_name(module)
        imported = names[rebuilding.ORIGIN][2] if rebuilding.ORIGIN in names else imported
        if not imported:
            self.files.add(code.co_filename)
        used = self._used_globals(function, module, imported)
        if name:
            used[name] = function
        state = {
            "globals": used,
            "replace": imported,
            "modules": _submodules(function, names),
            "dict": vars(function),
            "attributes": {key: getattr(function, key) for key in _ATTRIBUTES},
        }
        where = (names.get("__name__") or "", name, self.homeward)
        args = (where, code, self._base(names, module), function.__closure__)
        return rebuilding.make_function, args, state, None, None, rebuilding.fill_function

    def _base(self, names: Dict[str, Any], module: Optional[ModuleType]) -> Any:
        """What stands for a function's globals; one object for all functions that share them."""
        base = self.globals_ref.get(id(names))
        if base is None:
            if rebuilding.ORIGIN in names:
                base = _Globals(*names[rebuilding.ORIGIN])
            elif module is None:
                base = {key: names[key] for key in ("__name__", *FACTS) if key in names}
            else:
                base = _Globals(module.__name__, facts_of(module), by_name(module))
            self.globals_ref[id(names)] = base
        return base

    def _used_globals(self, function: FunctionType, module: Optional[ModuleType], imported: bool) -> Dict[str, Any]:
        """The globals that a function uses. What can't travel is left to a module that is imported there."""
        names = function.__globals__
        words = _global_names(function.__code__)
        if self.whole_namespaces and module and not imported and not words.isdisjoint(_LOOKING_UP - names.keys()):
            return {name: value for name, value in names.items() if name[:2] != "__" and _can_travel(value)}
        used = {**_annotated(function, names), **{name: names[name] for name in sorted(words) if name in names}}
        if imported and self.whole_namespaces:
            return {name: value for name, value in used.items() if isinstance(value, _NAMED) or _can_travel(value)}
        return used

    # Classes

    def _class(self, kind: Any) -> Reduced:
        if kind in _SINGLE:
            return cloudpickle._class_reduce(kind)
        if _goes_by_name(kind):
            return _public_name(kind)
        module = sys.modules.get(kind.__module__)
        named = module is not None and found(kind.__module__, kind.__qualname__) is kind
        tracker = cloudpickle._get_or_create_tracker_id(kind)
        where = (kind.__module__, kind.__qualname__ if named else "", tracker)
        if type(kind).__name__ == "_TypedDictMeta":
            return _typed_dict(kind, where)
        if isinstance(kind, enum.EnumMeta) and kind.__members__ and getattr(kind, "_member_type_", None) in _DATA_TYPES:
            return self._enum(kind, where)
        state, _ = cloudpickle._class_getstate(kind)
        body = _first_body(kind)
        made = (where, type(kind), kind.__name__, kind.__bases__, body)
        return rebuilding.make_class, made, _class_state(kind, state, body), None, None, rebuilding.fill_class

    def _enum(self, kind: Any, where: Tuple[str, str, str]) -> Reduced:
        members = {
            name: (_plain(member, kind._member_type_), member.value) for name, member in kind.__members__.items()
        }
        named = {"boundary": kind._boundary_} if hasattr(kind, "_boundary_") else {}
        body = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        rest = {key: value for key, value in vars(kind).items() if key not in _OF_EVERY_ENUM and key not in members}
        state = _class_state(kind, rest, body)
        state["members"] = {
            name: {key: value for key, value in vars(member).items() if key not in _OF_EVERY_MEMBER}
            for name, member in kind.__members__.items()
        }
        made = (where, type(kind), kind.__name__, kind.__bases__, body, members, named)
        return rebuilding.make_enum, made, state, None, None, rebuilding.fill_class


_NAMED = (FunctionType, type, ModuleType)
_ATTRIBUTES = ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__", "__annotations__")
_OF_EVERY_MEMBER = {"__objclass__", "_name_", "_sort_order_", "__sort_order__"}
_SINGLE = {type(None), type(Ellipsis), type(NotImplemented), *cloudpickle._BUILTIN_TYPE_NAMES}


class _Globals:
    """Stands for the globals of a module."""

    def __init__(self, *of: Any) -> None:
        self._of = of

    def __reduce__(self) -> Reduced:
        return rebuilding.namespace, self._of


def _owner(names: Dict[str, Any]) -> Optional[ModuleType]:
    """The module whose globals these are."""
    module = sys.modules.get(names.get("__name__", ""))
    if module is None or vars(module) is not names or cloudpickle._is_registered_pickle_by_value(module):
        return None
    return module


def _goes_by_name(obj: Any) -> bool:
    found = cloudpickle._lookup_module_and_qualname(obj)
    return found is not None and by_name(found[0])


def _public_name(obj: Any) -> Reduced:
    """Of this package, a run knows the public names alone, and all of them."""
    package: Any = sys.modules["slurm_ray_flow"]
    name: str = obj.__name__
    if str(obj.__module__).startswith("slurm_ray_flow.") and getattr(package, name, None) is obj:
        return getattr, (package, name)
    return NotImplemented


def _holds(names: Dict[str, Any], function: FunctionType) -> bool:
    """Whether a function stands under its own name in these globals, plain or decorated by us."""
    known = names.get(function.__name__)
    decorated = hasattr(type(known), "reduce_for_run") and getattr(known, "function", None) is function
    return known is function or decorated


@functools.lru_cache(maxsize=4096)
def _words(code: CodeType) -> Tuple[FrozenSet[str], FrozenSet[str]]:
    """The globals that a code object names, with what is defined inside it; and all names and words that it holds."""
    named = {step.argval for step in dis.get_instructions(code) if step.opname in _NAMING}
    every = {*code.co_names}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner = _words(constant)
            named |= inner[0]
            every |= inner[1]
        elif isinstance(constant, str):
            every.update(_WORD.findall(constant))
    return frozenset(named), frozenset(every)


def _global_names(code: CodeType) -> FrozenSet[str]:
    return _words(code)[0]


def _submodules(function: FunctionType, names: Dict[str, Any]) -> List[ModuleType]:
    """The submodules that a function reaches as attributes of their packages: they must be imported there, too."""
    code = function.__code__
    values = [names[name] for name in _global_names(code) if name in names]
    values += [cell.cell_contents for cell in function.__closure__ or () if is_full(cell)]
    packages = [value for value in values if isinstance(value, ModuleType) and hasattr(value, "__path__")]
    words = _words(code)[1]
    return [
        sys.modules[name]
        for package in packages
        for name in sorted(sys.modules)
        if name.startswith(package.__name__ + ".")
        and words.issuperset(name[len(package.__name__) + 1 :].split("."))
        and importable(name)
    ]


def _annotated(owner: Any, names: Dict[str, Any]) -> Dict[str, Any]:
    """The globals that annotations name which are texts, as `from __future__ import annotations` makes all of them."""
    notes = vars(owner).get("__annotations__", {}) if isinstance(owner, type) else owner.__annotations__
    texts = [text for text in notes.values() if isinstance(text, str)] if isinstance(notes, dict) else []
    words = sorted({word for text in texts for word in _WORD.findall(text)})
    return {word: names[word] for word in words if word in names}


def _can_travel(value: Any) -> bool:
    pickler = ValuePickler(io.BytesIO(), lambda _: False)
    pickler.whole_namespaces = False
    try:
        pickler.dump(value)
    except Exception:
        return False
    return True


def _first_body(kind: Any) -> Dict[str, Any]:
    """What a class must have when it is made."""
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
    """What `fill_class` gives a class."""
    rest = {key: value for key, value in state.items() if key not in body and not _is_slot(value, kind)}
    module = sys.modules.get(kind.__module__)
    names = _annotated(kind, vars(module)) if module and not by_name(module) else {}
    return {"registered": rest.pop("_abc_impl", []), "body": rest, "members": {}, "globals": names}


def _plain(member: Any, base: type) -> Any:
    """A member as an object of its data type alone."""
    if base is object:
        return None
    return str.__str__(member) if base is str else base.__new__(base, member)


def _typed_dict(kind: Any, where: Tuple[str, str, str]) -> Reduced:
    maker = sys.modules[type(kind).__module__].TypedDict  # typing's, or that of typing_extensions
    generic = tuple(base for base in getattr(kind, "__orig_bases__", ()) if hasattr(base, "__origin__"))
    made = (where, maker, kind.__name__, generic, dict(kind.__annotations__), kind.__total__)
    kept = ("__required_keys__", "__optional_keys__", "__doc__", "__qualname__", "__annotations__")
    state = {key: getattr(kind, key) for key in kept if hasattr(kind, key)}
    return rebuilding.make_typed_dict, made, _class_state(kind, state, {}), None, None, rebuilding.fill_class
