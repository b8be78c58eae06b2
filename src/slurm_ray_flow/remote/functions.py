"""Functions by name."""

from __future__ import annotations

import importlib
from typing import Any, Callable


def resolve_function(module: str, qualified_name: str) -> Any:
    """What stands under this name: at home the decorated function, inside a run the plain one."""
    found: Any = importlib.import_module(module)
    for part in qualified_name.split("."):
        found = getattr(found, part)
    return found


def itself(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorated function that goes by value arrives as the plain one."""
    return function
