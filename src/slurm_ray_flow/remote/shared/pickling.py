"""Pickling of functions, arguments and outcomes, at home and in the driver: the part that needs no cloudpickle or dill.

`pickler` has the pickler itself, and `pickle_rules` its rules by types.
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
"""The present names of modules that old pickles name."""


class Sources:
    """Pickled after functions, with their sources, which tracebacks and `inspect.getsource` show."""


def dump(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """Pickle `value` into `file`; the `dump` of `payload.write`.

    Raises:
        Exception: whatever the objects and their picklers raise for what can't be pickled.
    """
    from slurm_ray_flow.remote.shared.pickler import ValuePickler

    ValuePickler(file, buffer_callback).dump(value)


def dump_outcome(
    value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any], modules: Optional[Set[str]] = None
) -> None:
    """Pickle an outcome, which may have no object that is useless at home.

    Args:
        value, file, buffer_callback: as for `dump`.
        modules: gets the names of the modules that the pickle's classes and functions are found in.

    Raises:
        DeadValue: it has such an object.
        Exception: as for `dump`.
    """
    from slurm_ray_flow.remote.shared.pickler import ValuePickler

    refuse_locks(value)
    pickler = ValuePickler(file, buffer_callback, homeward=True)
    pickler.dump(value)
    if modules is not None:
        modules.update(pickler.modules)


def refuse_locks(value: Any, depth: int = 4) -> None:
    """Refuse a lock as a value. A lock that an object has as an attribute is replaced by a new one.

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
    """Reads dill's pickles, too; dill's own unpickler is slow, being written in Python, and adds only these names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("__builtin__", "__main__"):
            return sys.modules["__main__"].__dict__
        if (module, name) == ("__builtin__", "NoneType"):
            return type(None)
        return super().find_class("dill._dill" if module == "dill.dill" else MOVED.get(module, module), name)


def is_plain(values: Any) -> bool:
    """Whether all elements of a collection are numbers, strings or None."""
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


modules_without_file: Set[str] = {"__main__"}
"""The names of modules that this process has made without a file."""


def importable(name: str) -> bool:
    """Whether a fresh interpreter with this one's `sys.path` finds, by this name, the module that is loaded here."""
    if not isinstance(name, str) or name in modules_without_file:
        return False
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if getattr(module, "__spec__", None) is not None and not str(file).endswith(".py"):
        return True  # built in, compiled or a namespace: the import system has made it
    return _is_on_path(name, file, tuple(sys.path))


@functools.lru_cache(maxsize=None)
def _is_on_path(name: str, file: Optional[str], _path: Tuple[str, ...]) -> bool:
    """Whether the finders find the module part by part; `sys.modules`, which has it in any case, is not searched."""
    search_path, spec = None, None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = _spec(".".join(parts[:count]), search_path)
        if spec is None:
            return False
        search_path = spec.submodule_search_locations
    origin = str(getattr(spec, "origin", None))
    if file is None or not origin.endswith(".py"):
        return True  # frozen, say
    return os.path.realpath(origin) == os.path.realpath(file)


def _spec(name: str, search_path: Any) -> Any:
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, search_path)
        except Exception:  # a third party's finder may fail; the next one may find it
            continue
        if spec is not None:
            return spec
    return None


def by_name(module: ModuleType) -> bool:
    """Whether a module's objects are pickled by name; cloudpickle's users can register a module against that."""
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    registered = cloudpickle is not None and cloudpickle._is_registered_pickle_by_value(module)
    return importable(module.__name__) and not registered


def lookup(module: str, qualified_name: str) -> Any:
    """The object that this process has under a name; None if there is none."""
    value: Any = sys.modules.get(module)
    for part in qualified_name.split("."):
        value = getattr(value, part, None)
    return value


def has_name(obj: Any, module: Optional[str], qualified_name: str) -> bool:
    """Whether another process finds this very object under this name."""
    loaded = sys.modules.get(module) if isinstance(module, str) else None
    return loaded is not None and lookup(loaded.__name__, qualified_name) is obj and by_name(loaded)


def resolve_function(module: str, qualified_name: str) -> Any:
    """The object of this name: at home the decorated function, in a run the plain one."""
    value: Any = importlib.import_module(module)
    for part in qualified_name.split("."):
        value = getattr(value, part)
    return value


def itself(function: Callable[..., Any]) -> Callable[..., Any]:
    """The plain function: a decorated one is pickled by value as a call of `itself`."""
    return function
