"""Classes that travel by value: how they are taken apart, made again, and known again."""

from __future__ import annotations

import enum
import sys
import types
from types import ModuleType
from typing import Any, Dict, Set, Tuple

_adopting = False
_adopted: Dict[Tuple[str, str], type] = {}


def adopt_main() -> None:
    """Give this process an empty `__main__`, and keep the classes that arrive: what the driver does first."""
    global _adopting  # noqa: PLW0603 - one process, one `__main__`
    sys.modules["__main__"] = ModuleType("__main__")
    _adopting = True


def resolve_class(module: str, qualified_name: str, by_value: type) -> type:
    """The class of this process that has this name, or else the one that came by value."""
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type):
        return found
    if not _adopting:
        return by_value
    if module == "__main__" and "." not in qualified_name:
        setattr(sys.modules["__main__"], qualified_name, by_value)
    return _adopted.setdefault((module, qualified_name), by_value)


def new_class(meta: type, name: str, bases: Tuple[type, ...], first: Dict[str, Any]) -> type:
    """A class with the first part of its body only; `fill_class` gives it the rest."""

    def fill(namespace: Any) -> None:
        for key, value in first.items():  # an enum's namespace counts its members: no update()
            namespace[key] = value

    return types.new_class(name, bases, {"metaclass": meta}, fill)


def fill_class(kind: type, rest: Dict[str, Any]) -> None:
    """Give a class of `new_class` the rest of its body, which may mention the class."""
    for name, value in rest.items():
        setattr(kind, name, value)


def has_a_name(kind: type) -> bool:
    """Whether it can be known again by its module and name; a local class can't."""
    return isinstance(getattr(kind, "__module__", None), str) and "<locals>" not in kind.__qualname__


def refers_to_itself(kind: type) -> bool:
    """Whether its body holds it in a way that dill gives up on: enums, and the classes of pydantic."""
    return isinstance(kind, enum.EnumMeta) or "__pydantic_core_schema__" in vars(kind)


def halves(kind: type) -> Tuple[Dict[str, Any], Dict[str, Any]]:
    """What a class is made with, and what is added when it is there and can be mentioned."""
    first: Dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    left_out: Set[str] = {*_OF_EVERY_CLASS}
    if isinstance(kind, enum.EnumMeta):
        first.update(_made_of(kind))
        left_out.update(_OF_EVERY_ENUM, kind.__members__)
    return first, {name: value for name, value in vars(kind).items() if name not in left_out}


def _made_of(kind: Any) -> Dict[str, Any]:
    """The members of an enum, and what makes them."""
    body = vars(kind)
    makers = {"__new__": body.get("__new_member__"), "__init__": body.get("__init__")}
    made = {name: maker for name, maker in makers.items() if maker is not None}
    made.update((name, member.value) for name, member in kind.__members__.items())
    return made


_OF_EVERY_CLASS = ("__dict__", "__weakref__", "__module__", "__qualname__", "_abc_impl")
_OF_EVERY_ENUM = (
    "_generate_next_value_", "_member_names_", "_member_map_", "_member_type_", "_value2member_map_", "__new_member__",
    "_new_member_", "_use_args_", "_unhashable_values_", "_hashable_values_", "_value_repr_", "__new__", "__init__",
)  # fmt: skip
