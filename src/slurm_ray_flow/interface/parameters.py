"""What Prefect's API gets to see of a function's arguments.

Small plain data goes as it is, so that it can be read and edited in the UI. All else (large, or without an exact form
in JSON) goes to the store at home, and the API gets `{"$srf": digest, "name": ..., "type": ...}`; a rerun gets the same
value.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable
from typing import Any

from prefect.utilities.callables import parameters_to_args_kwargs
from pydantic import TypeAdapter

from slurm_ray_flow.blocks import store
from slurm_ray_flow.core.errors import PayloadError
from slurm_ray_flow.remote.pickling import COLLECTIONS, PLAIN, is_plain

MARK = "$srf"
BUDGET = 20_000
"""So many bytes of JSON, about, may go to the API for one argument; its limit for a whole request is 524,288."""


Parameters = dict[str, Any]


class Held:
    """A value that Prefect is not to look into.

    A large collection of plain data, of which Prefect would visit each element twice, or a default that is not simply
    equal to itself, such as an array.
    """

    def __init__(self, value: Any) -> None:
        self.value = value


def hold(value: Any) -> Any:
    """The value, held where that pays."""
    return Held(value) if _weight(value, BUDGET) < 0 and _only_plain(value) else value


def hold_default(value: Any) -> Any:
    """The default of a parameter, held where Prefect could not compare it."""
    try:
        return value if isinstance(value == value, bool) else Held(value)  # noqa: PLR0124 - what Prefect does
    except Exception:
        return Held(value)


def unhold(value: Any) -> Any:
    """What `hold` and `hold_default` were given."""
    return value.value if isinstance(value, Held) else value


def to_api(function: Callable[..., Any], parameters: Parameters) -> Parameters:
    """Parameters in the form for the API.

    Raises:
        PayloadError: one that must go to the store can't be pickled.
    """
    parameters = {name: unhold(value) for name, value in parameters.items()}
    plain = {name: _plain_form(function, name, value) for name, value in parameters.items()}
    if all(_weight(value, BUDGET) >= 0 for value in plain.values()):
        return plain
    digest = store_arguments(function, parameters)
    return {
        name: value if _weight(value, BUDGET) >= 0 else {MARK: digest, "name": name, "type": _kind(parameters[name])}
        for name, value in plain.items()
    }


def _plain_form(function: Callable[..., Any], name: str, value: Any) -> Any:
    """What stands for the value in JSON, if the annotation makes the same value of it again; else the value."""
    annotation = inspect.signature(function).parameters[name].annotation
    if annotation in {inspect.Parameter.empty, Any} or _weight(value, BUDGET) >= 0 or _only_plain(value):
        return value
    try:
        adapter = TypeAdapter(annotation)
        found = adapter.dump_python(value, mode="json")
        again = adapter.validate_python(found)
        return found if type(again) is type(value) and bool(again == value) else value
    except Exception:  # a type that pydantic does not know
        return value


def from_api(parameters: Parameters) -> Parameters:
    """Parameters with all references resolved.

    Raises:
        PayloadError: the store has no such payload any more.
    """
    payloads: dict[str, Parameters] = {}

    def resolve(value: Any) -> Any:
        if not (isinstance(value, dict) and isinstance(value.get(MARK), str)):
            return value
        digest = value[MARK]
        if digest not in payloads:
            payloads[digest] = store.get(digest)["parameters"]
        return payloads[digest][value["name"]]

    return {name: resolve(value) for name, value in parameters.items()}


_newest = threading.local()


def store_arguments(function: Callable[..., Any], parameters: Parameters) -> str:
    """Put all arguments of a call into the store, in the form that the driver reads.

    One payload holds all of them: an object that two arguments share stays one object. Prefect asks for the API's form
    just before it runs the flow, so the payload of a thread's last call is remembered until it is used.

    Returns:
        The payload's digest.

    Raises:
        PayloadError: an argument can't be pickled; the error names it.
    """
    parameters = {name: unhold(value) for name, value in parameters.items()}
    known = getattr(_newest, "call", None)
    _newest.call = None
    if (
        known
        and known[0].keys() == parameters.keys()
        and all(known[0][name] is parameters[name] for name in parameters)
    ):
        return str(known[1])
    args, kwargs = parameters_to_args_kwargs(function, parameters)
    try:
        stored = store.put({"args": list(args), "kwargs": kwargs, "parameters": parameters}, "the call")
    except PayloadError:
        for name, value in parameters.items():
            store.put(value, f"the argument {name!r} ({_kind(value)})")
        raise
    _newest.call = (parameters, stored.digest)
    return stored.digest


def forget_arguments() -> None:
    """Let go of the remembered call, so that its arguments can be freed."""
    _newest.call = None


def is_small_plain(value: Any) -> bool:
    """Whether it is small, and the same after a way through JSON."""
    return _weight(value, BUDGET) >= 0


def _kind(value: Any) -> str:
    shape = getattr(value, "shape", None)
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{name}{tuple(shape)}" if isinstance(shape, tuple) else name


def _only_plain(value: Any, depth: int = 20) -> bool:
    """Whether it is plain data all through."""
    kind = type(value)
    if kind in PLAIN:
        return True
    if kind not in COLLECTIONS or depth == 0:
        return False
    if is_plain(value):
        return True
    if kind is dict and not PLAIN.issuperset(map(type, value)):
        return False
    return all(_only_plain(part, depth - 1) for part in (value.values() if kind is dict else value))


def _weight(value: Any, budget: int, depth: int = 100) -> int:
    """What is left of the budget after this value; below zero when it is too large, or JSON would change it."""
    kind = type(value)
    if kind is str:
        return budget - len(value) - 4
    if (
        value is None
        or kind is bool
        or (kind is int and abs(value) < 2**53)
        or (kind is float and math.isfinite(value))
    ):
        return budget - 8
    if kind is list:
        return _total(value, budget, depth - 1)
    if kind is dict and MARK not in value and all(type(key) is str for key in value):
        return _total([*value, *value.values()], budget, depth - 1)
    return -1


def _total(values: list[Any], budget: int, depth: int) -> int:
    if len(values) > budget or depth == 0:
        return -1
    for value in values:
        budget = _weight(value, budget, depth)
        if budget < 0:
            return -1
    return budget
