"""Whether a module can be imported by its name in another process that has the same files.

Not every module can: not `__main__`, not a file that was loaded by its path (Prefect does so with a deployment's
file, pytest in its importlib mode), not one that was made at run time.
"""

from __future__ import annotations

import functools
import os
import sys
from types import ModuleType
from typing import Any, Optional, Set, Tuple

made_by_hand: Set[str] = {"__main__"}
"""Modules that this process has without a file to import them from."""


def importable(name: str) -> bool:
    """Whether a fresh interpreter with this one's `sys.path` finds, by this name, the module that is loaded here."""
    if not isinstance(name, str) or name in made_by_hand:
        return False
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if getattr(module, "__spec__", None) is not None and not str(file).endswith(".py"):
        return True  # built in, compiled, a namespace: made by the import system and not by hand
    return _found(name, file, tuple(sys.path))


@functools.lru_cache(maxsize=None)
def _found(name: str, file: Optional[str], _path: Tuple[str, ...]) -> bool:
    """Look the module up part by part; `sys.modules`, where it stands in any case, is not asked."""
    where, spec = None, None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:count]), where)
        if spec is None:
            return False
        where = spec.submodule_search_locations
    origin = str(getattr(spec, "origin", None))
    if file is None or not origin.endswith(".py"):
        return True  # frozen, say
    return os.path.realpath(origin) == os.path.realpath(file)


def _spec(name: str, where: Any) -> Any:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, where)
        except Exception:  # somebody's finder may be too old or too clever; the next one may know
            continue
        if spec is not None:
            return spec
    return None


def by_name(module: ModuleType) -> bool:
    """Whether what a module holds goes by its name; cloudpickle's users may say of a module that it does not."""
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    registered = cloudpickle is not None and cloudpickle._is_registered_pickle_by_value(module)
    return importable(module.__name__) and not registered


def found(module: str, qualified_name: str) -> Any:
    """What this process has under a name; None without."""
    found: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    return found


def has_name(obj: Any, module: Optional[str], qualified_name: str) -> bool:
    """Whether another process finds this very object under this name."""
    known = sys.modules.get(module) if isinstance(module, str) else None
    return known is not None and found(known.__name__, qualified_name) is obj and by_name(known)
