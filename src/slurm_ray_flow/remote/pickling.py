"""How functions, arguments and outcomes are pickled, at home and in the driver: dill, by the rules below.

- What can be imported by its name on the other side goes by reference, a module without what it holds at home. Local
  functions, and those of `__main__` (a script, a notebook, the REPL) and of other modules that can't be imported by
  name, go by value, with only those globals that they use.
- A class of such a module goes by value too, but is *resolved* on arrival: where there is a module of that name with
  such a class (at home, on the way back), that one is used, so that `isinstance` and `except` work there; in the
  driver the first copy stays the only one, so that a class in the arguments is the one that the function means.
"""

from __future__ import annotations

import dis
import functools
import importlib
import pickle
import sys
from types import CodeType, ModuleType
from typing import Any, Callable, Dict, List, Optional

from slurm_ray_flow.remote import classes
from slurm_ray_flow.remote.importable import importable

PLAIN = frozenset({float, int, str, bool, type(None)})
COLLECTIONS = frozenset({list, tuple, set, frozenset, dict})
MANY = 256
"""From so many plain elements on, a collection is left to the pickler that is written in C: dill's takes seconds."""


def dump(value: Any, file: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any]) -> None:
    """Pickle `value` into `file`; the `dump` of `payload.write`.

    Raises:
        Exception: whatever the objects and dill raise for what can't be pickled.
    """
    pickler_class()(file, protocol=5, buffer_callback=buffer_callback, byref=False, recurse=True).dump(value)


def load(file: Any, buffers: List[bytearray]) -> Any:
    """Unpickle; the `load` of `payload.read`."""
    importlib.import_module("dill")
    return _Unpickler(file, buffers=buffers).load()


class _Unpickler(pickle.Unpickler):
    """dill's own one is written in Python, and slow; all that it adds are these names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("__builtin__", "__main__"):
            return sys.modules["__main__"].__dict__
        if (module, name) == ("__builtin__", "NoneType"):
            return type(None)
        return super().find_class("dill._dill" if module == "dill.dill" else module, name)


@functools.lru_cache(maxsize=None)
def pickler_class() -> Any:
    """dill's pickler with the rules of this module. dill is imported here, because the head does without it."""
    dill: Any = importlib.import_module("dill")

    class ValuePickler(_Rules, dill.Pickler):  # type: ignore[misc]
        pass

    located = dill._dill._locate_function

    def located_by_name(obj: Any, pickler: Any = None) -> bool:
        module = getattr(obj, "__module__", None)
        if isinstance(pickler, ValuePickler) and isinstance(module, str) and not importable(module):
            return False
        return bool(located(obj, pickler))

    dill._dill._locate_function = located_by_name  # decides what goes by value; no other pickler sees a difference
    dill.detect.nestedglobals = global_names
    return ValuePickler


def global_names(function: Any, recurse: bool = True) -> List[str]:  # noqa: ARG001 - dill's descends always, too
    """The names of all globals in a function or a code object, and in what is defined inside it.

    dill's own one reads them off what `dis` prints, and makes that `sys.stdout` meanwhile: what another thread prints
    is lost, and of two threads that pickle at once one may leave it so for good.
    """
    code = getattr(function, "__code__", function)
    if not isinstance(code, CodeType):
        return []
    names = {one.argval for one in dis.get_instructions(code) if "_GLOBAL" in one.opname}
    return list(names.union(*(global_names(inner) for inner in code.co_consts)))


class _Rules:
    """What our pickler does otherwise than dill's; `save` is asked for every object."""

    memo: Dict[Any, Any]
    save_reduce: Callable[..., None]

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self._begun: Dict[int, type] = {}

    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if id(obj) not in self.memo:
            if _is_plain_array(obj):  # dill would copy its bytes into the pickle
                return self.save_reduce(*obj.__reduce_ex__(5), obj=obj)
            if _is_many_plain(obj):
                return self.save_reduce(pickle.loads, (pickle.dumps(obj, 5),), obj=obj)
            if hasattr(type(obj), "reduce_for_run"):  # a decorated function: the same as the plain one there
                return self.save_reduce(*obj.reduce_for_run(), obj=obj)
            if isinstance(obj, ModuleType) and sys.modules.get(obj.__name__) is obj and importable(obj.__name__):
                # dill would send along what it holds, and lay that over the module there: home's paths, and all data.
                return self.save_reduce(importlib.import_module, (obj.__name__,), obj=obj)
            if isinstance(obj, type) and self._save_class(obj):
                return None
        super().save(obj, save_persistent_id)  # type: ignore[misc]
        return None

    def _save_class(self, kind: type) -> bool:
        named = classes.has_a_name(kind)
        if named and importable(kind.__module__):
            return False
        if named and id(kind) not in self._begun:
            self._save_resolved(kind)
            return True
        if classes.refers_to_itself(kind):
            self._save_in_two_steps(kind)
            return True
        return False

    def _save_resolved(self, kind: type) -> None:
        self._begun[id(kind)] = kind
        self.save_reduce(classes.resolve_class, (kind.__module__, kind.__qualname__, kind))
        # What was memoized while the class was built is the copy; from here on the resolved one is meant.
        self.memo["by value", id(kind)] = self.memo.pop(id(kind))
        self.memoize(kind)  # type: ignore[attr-defined]

    def _save_in_two_steps(self, kind: type) -> None:
        first, rest = classes.halves(kind)
        self.save_reduce(classes.new_class, (type(kind), kind.__name__, kind.__bases__, first), obj=kind)
        self.save_reduce(classes.fill_class, (kind, rest))
        self.write(pickle.POP)  # type: ignore[attr-defined]


def _is_many_plain(value: Any) -> bool:
    return type(value) in COLLECTIONS and len(value) >= MANY and is_plain(value)


def is_plain(values: Any) -> bool:
    """Whether a collection holds nothing but numbers, texts and None."""
    if not PLAIN.issuperset(map(type, values)):
        return False
    return type(values) is not dict or PLAIN.issuperset(map(type, values.values()))


def _is_plain_array(value: Any) -> bool:
    kind = type(value)
    return kind.__name__ == "ndarray" and kind.__module__ == "numpy"


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
        dump(value, Nowhere(), lambda _: False)
    except Exception:
        return False
    return True
