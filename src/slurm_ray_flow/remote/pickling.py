"""How functions, arguments and outcomes are pickled, at home and in the driver; the rules stand in `pickler`.

Here is what needs neither cloudpickle nor dill to be imported.
"""

from __future__ import annotations

import pickle
import sys
from types import ModuleType
from typing import Any, Callable, List, Optional

PLAIN = frozenset({float, int, str, bool, type(None)})
COLLECTIONS = frozenset({list, tuple, set, frozenset, dict})


class Sources:
    """Stands in a pickle behind functions, and brings their sources along: for tracebacks and `inspect.getsource`."""


def dump(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """Pickle `value` into `file`; the `dump` of `payload.write`.

    Raises:
        Exception: whatever the objects and their picklers raise for what can't be pickled.
    """
    from slurm_ray_flow.remote.pickler import ValuePickler

    ValuePickler(file, buffer_callback).dump(value)


def dump_outcome(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """The same for an outcome, in which nothing may be that is good for nothing at home.

    Raises:
        DeadValue: there is such a thing in it.
        Exception: as for `dump`.
    """
    from slurm_ray_flow.remote.pickler import ValuePickler

    refuse_locks(value)
    ValuePickler(file, buffer_callback, homeward=True).dump(value)


def refuse_locks(value: Any, depth: int = 4) -> None:
    """Refuse a lock as a value; one that is a part of an object comes home as a new one, which is what it is for.

    Raises:
        DeadValue: the value, or an element of its collections, is a lock.
    """
    from slurm_ray_flow.remote.pickle_rules import DeadValue

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
        return super().find_class("dill._dill" if module == "dill.dill" else module, name)


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
