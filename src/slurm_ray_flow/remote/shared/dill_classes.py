"""Functions named in dill pickles of old versions, which runs at home may still hold; new ones name `rebuilding`."""

from __future__ import annotations

import sys
import types
from typing import Any, Dict, Tuple


def resolve_class(module: str, qualified_name: str, by_value: type) -> type:
    """The class that this process has under this name, or else the class that was pickled by value."""
    value: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        value = getattr(value, part, None)
    return value if isinstance(value, type) else by_value


def new_class(meta: type, name: str, bases: Tuple[type, ...], first: Dict[str, Any]) -> type:
    """A class with the first part of its body; `fill_class` adds the rest."""

    def fill(namespace: Any) -> None:
        for key, value in first.items():  # an enum's namespace counts its members: no update()
            namespace[key] = value

    return types.new_class(name, bases, {"metaclass": meta}, fill)


def fill_class(kind: type, rest: Dict[str, Any]) -> None:
    """Add the rest of its body, which may refer to the class itself, to a class of `new_class`."""
    for name, value in rest.items():
        setattr(kind, name, value)
