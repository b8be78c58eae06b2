"""Whether a module can be imported by its name in another process that has the same files.

Not every module can: not `__main__`, not a file that was loaded by its path (Prefect does so with a deployment's
file, pytest in its importlib mode), not one that was made at run time.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, Optional, Tuple


def importable(name: str) -> bool:
    """Whether a fresh interpreter with this one's `sys.path` finds, by this name, the module that is loaded here."""
    if name == "__main__":
        return False
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is not None and not str(file).endswith(".py"):
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
