"""How functions, arguments and outcomes are pickled, at home and in the driver; the rules stand in `pickler`.

Here is what needs neither cloudpickle nor dill to be imported.
"""

from __future__ import annotations

import functools
import importlib
import os
import pickle
import sys
from types import ModuleType
from typing import Any, Callable, List, Optional, Set, Tuple

PLAIN = frozenset({float, int, str, bool, type(None)})
COLLECTIONS = frozenset({list, tuple, set, frozenset, dict})

_SHARED = "slurm_ray_flow.remote.shared."
MOVED = {
    "slurm_ray_flow.remote.rebuilding": _SHARED + "rebuilding",
    "slurm_ray_flow.remote.failures": _SHARED + "failures",
    "slurm_ray_flow.remote.pickling": _SHARED + "pickling",
    "slurm_ray_flow.remote.pickle_rules": _SHARED + "pickle_rules",
    "slurm_ray_flow.remote.pickler": _SHARED + "pickler",
    "slurm_ray_flow.remote.notice": _SHARED + "end_warning",
    "slurm_ray_flow.remote.checkpoints": "slurm_ray_flow.remote.driver.checkpoints",
    "slurm_ray_flow.remote.classes": _SHARED + "dill_classes",
}
"""Modules that pickles of before name, and where they are now."""


class Sources:
    """Stands in a pickle behind functions, and brings their sources along: for tracebacks and `inspect.getsource`."""


def dump(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """Pickle `value` into `file`; the `dump` of `payload.write`.

    Raises:
        Exception: whatever the objects and their picklers raise for what can't be pickled.
    """
    from slurm_ray_flow.remote.shared.pickler import ValuePickler

    ValuePickler(file, buffer_callback).dump(value)


def dump_outcome(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """The same for an outcome, in which nothing may be that is good for nothing at home.

    Raises:
        DeadValue: there is such a thing in it.
        Exception: as for `dump`.
    """
    from slurm_ray_flow.remote.shared.pickler import ValuePickler

    refuse_locks(value)
    ValuePickler(file, buffer_callback, homeward=True).dump(value)


def refuse_locks(value: Any, depth: int = 4) -> None:
    """Refuse a lock as a value; one that is a part of an object comes home as a new one, which is what it is for.

    Raises:
        DeadValue: the value, or an element of its collections, is a lock.
    """
    from slurm_ray_flow.remote.shared.pickle_rules import DeadValue

    if type(value).__module__ == "_thread" and type(value).__name__ in ("lock", "RLock"):
        raise DeadValue("a lock can't come home: it guards something in the process that made it")
    if depth and type(value) in COLLECTIONS and len(value) < 1000:
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            refuse_locks(part, depth - 1)


def load(file: Any, buffers: List[bytearray]) -> Any:
    """Unpickle; the `load` of `payload.read`."""
    return _Unpickler(file, buffers=buffers).load()


class _Unpickler(pickle.Unpickler):
    """Reads what dill writes, too. dill's own one is written in Python, and slow; all that it adds are these names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("__builtin__", "__main__"):
            return sys.modules["__main__"].__dict__
        if (module, name) == ("__builtin__", "NoneType"):
            return type(None)
        return super().find_class("dill._dill" if module == "dill.dill" else MOVED.get(module, module), name)


def is_plain(values: Any) -> bool:
    """Whether a collection holds nothing but numbers, texts and None."""
    if not PLAIN.issuperset(map(type, values)):
        return False
    return type(values) is not dict or PLAIN.issuperset(map(type, values.values()))


def offending_part(value: Any) -> Optional[str]:
    """The path of the innermost part of `value` that can't be pickled, such as `value["model"].handle`, if found."""
    path, current = "value", value
    for _ in range(20):
        for step, part in _parts(current):
            if not _pickles(part):
                path, current = path + step, part
                break
        else:
            return path if path != "value" else None
    return path


def _parts(value: Any) -> List[Any]:
    if isinstance(value, dict):
        return [("[{!r}]".format(key), part) for key, part in list(value.items())[:1000]]
    if isinstance(value, (list, tuple)):
        return [("[{}]".format(index), part) for index, part in enumerate(value[:1000])]
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict) and not isinstance(value, (type, ModuleType)):
        return [("." + name, part) for name, part in attributes.items()]
    return []


def _pickles(value: Any) -> bool:
    class Nowhere:
        def write(self, data: bytes) -> int:
            return len(data)

    try:
        dump_outcome(value, Nowhere(), lambda _: False)
    except Exception:
        return False
    return True


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
    value: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        value = getattr(value, part, None)
    return value


def has_name(obj: Any, module: Optional[str], qualified_name: str) -> bool:
    """Whether another process finds this very object under this name."""
    known = sys.modules.get(module) if isinstance(module, str) else None
    return known is not None and found(known.__name__, qualified_name) is obj and by_name(known)


def resolve_function(module: str, qualified_name: str) -> Any:
    """What stands under this name: at home the decorated function, inside a run the plain one."""
    value: Any = importlib.import_module(module)
    for part in qualified_name.split("."):
        value = getattr(value, part)
    return value


def itself(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorated function that goes by value arrives as the plain one."""
    return function
