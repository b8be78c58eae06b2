"""How functions, arguments and outcomes are pickled, at home and in the driver: dill, by the rules below.

- What can be imported by its name on the other side goes by reference; functions of `__main__` (a script, a notebook,
  the REPL) and local ones go by value, with only those globals that they use.
- A class of `__main__` goes by value too, but is *resolved* on arrival: where `__main__` has a class of that name (at
  home, on the way back), that one is used, so that `isinstance` and `except` work there; in the driver the first copy
  stays the only one, so that a class in the arguments is the one that the function means.
"""

from __future__ import annotations

import functools
import importlib
import pickle
import sys
from types import ModuleType
from typing import Any, Callable, Dict, List, Optional

_adopting = False


def adopt_main() -> None:
    """Give this process an empty `__main__` that keeps the classes which arrive: what the driver does first."""
    global _adopting  # noqa: PLW0603 - one process, one `__main__`
    sys.modules["__main__"] = ModuleType("__main__")
    _adopting = True


def resolve_class(qualified_name: str, by_value: type) -> type:
    """The class of this process's `__main__` with that name, or else the one that came by value."""
    found: Any = sys.modules.get("__main__")
    for part in qualified_name.split("."):
        found = getattr(found, part, None)
    if isinstance(found, type):
        return found
    if _adopting and "." not in qualified_name:
        setattr(sys.modules["__main__"], qualified_name, by_value)
    return by_value


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

    class ValuePickler(dill.Pickler):  # type: ignore[misc]
        def __init__(self, *positional: Any, **named: Any) -> None:
            super().__init__(*positional, **named)
            self._by_value: Dict[int, type] = {}

        def save(self, obj: Any, save_persistent_id: bool = True) -> None:
            if _is_main_class(obj) and id(obj) not in self.memo and id(obj) not in self._by_value:
                self._save_resolved(obj)
            elif _is_plain_array(obj) and id(obj) not in self.memo:  # dill would copy its bytes into the pickle
                self.save_reduce(*obj.__reduce_ex__(5), obj=obj)
            else:
                super().save(obj, save_persistent_id)

        def _save_resolved(self, kind: type) -> None:
            self._by_value[id(kind)] = kind
            self.save_reduce(resolve_class, (kind.__qualname__, kind))
            # What was memoized while the class was built is the copy; from here on the resolved one is meant.
            self.memo["by value", id(kind)] = self.memo.pop(id(kind))
            self.memoize(kind)

    return ValuePickler


def _is_main_class(value: Any) -> bool:
    return (
        isinstance(value, type)
        and getattr(value, "__module__", None) == "__main__"
        and "<locals>" not in value.__qualname__
    )


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
