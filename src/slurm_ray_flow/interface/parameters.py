"""The arguments of a function on their way through Prefect.

A call from this process passes the caller's own objects on: Prefect sees wrappers (`OpaqueValue`), which the flow's
body takes off. Prefect's API gets small plain data as JSON, which people can read and edit in the UI. All other values
(large ones, those without an exact form in JSON) go to the store at home, and the API gets a reference,
`{"$srf": digest, "name": ..., "type": ...}`. Arguments from the API, such as a rerun's, are cast by the annotations.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import inspect
import math
import pathlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prefect.blocks.core import Block
from prefect.client.schemas.objects import State
from prefect.exceptions import ParameterTypeError
from prefect.futures import PrefectFuture
from prefect.utilities.annotations import BaseAnnotation
from prefect.utilities.callables import parameters_to_args_kwargs
from prefect.utilities.collections import visit_collection
from pydantic import BaseModel, TypeAdapter, ValidationError

from slurm_ray_flow.blocks import store
from slurm_ray_flow.core.errors import PayloadError
from slurm_ray_flow.core.text import encodable
from slurm_ray_flow.interface.settings import Types

MARK = "$srf"
READ_BY_PREFECT = frozenset({MARK, "$ref", "__prefect_kind"})
"""Keys by which Prefect or this package recognizes a dictionary as a reference."""
BUDGET = 20_000
"""The bytes of JSON, roughly, that one argument may have in the API, whose limit for a whole request is 524,288."""
ALL_ARGUMENTS = 5 * BUDGET

Parameters = dict[str, Any]


class OpaqueValue:
    """A wrapper around a value that Prefect must not look into, or around a default that `==` can't compare."""

    def __init__(self, value: Any) -> None:
        self.value = value


def wrap_default(value: Any) -> Any:
    """The default of a parameter, wrapped where Prefect could not compare it."""
    try:
        return value if isinstance(value == value, bool) else OpaqueValue(value)  # noqa: PLR0124 - what Prefect does
    except Exception:
        return OpaqueValue(value)


def unwrap(value: Any) -> Any:
    """The value inside an `OpaqueValue`; any other value as it is."""
    return value.value if isinstance(value, OpaqueValue) else value


class Arguments:
    """The arguments of one call, without those that the function's own defaults give.

    Args:
        function: the function that has the signature.
        parameters: all arguments by name, defaults included.
        original: the positional and keyword arguments as the caller gave them, where their kind matters.
    """

    args: Any
    kwargs: Any

    def __init__(self, function: Callable[..., Any], parameters: Parameters, original: Any = None) -> None:
        explicit = _without_defaults(function, parameters)
        self.parameters = {name: unwrap(value) for name, value in explicit.items()}
        self.args, self.kwargs = original or parameters_to_args_kwargs(function, self.parameters)
        self._digest = ""

    def stored(self) -> str:
        """Put the arguments into the store, once, in the form that the driver reads; gives the payload's digest.

        One payload holds all of them: an object that two arguments share stays one object.

        Raises:
            PayloadError: an argument can't be pickled; the error names it.
        """
        if not self._digest:
            self._digest = _put({"args": list(self.args), "kwargs": self.kwargs}, self.parameters)
        return self._digest


def _put(call: dict[str, Any], parameters: Parameters) -> str:
    try:
        return store.put({**call, "parameters": parameters}, "the call").digest
    except PayloadError:
        for name, value in parameters.items():
            store.put(value, f"the argument {name!r} ({_type_text(value)})")
        raise


def _without_defaults(function: Callable[..., Any], parameters: Parameters) -> Parameters:
    """The parameters without those defaults that are known by identity, such as a sentinel (`x is MISSING`).

    Plain defaults are sent: home may have computed one, such as a time.
    """
    remaining = dict(parameters)
    needed = False  # as something positional comes after it
    for name, parameter in reversed(list(inspect.signature(function).parameters.items())):
        value = unwrap(remaining.get(name))
        as_default = value is unwrap(parameter.default) and (
            parameter.kind is parameter.POSITIONAL_ONLY or not _has_json_form(value)
        )
        if (as_default or (parameter.kind in MANY and not value)) and not (needed and parameter.kind in _BY_PLACE):
            remaining.pop(name, None)
        else:
            needed |= parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL)
    return remaining


_BY_PLACE = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
MANY = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def holds_future(value: Any, seen: set[int] | None = None, depth: int = 50) -> bool:
    """Whether a value holds, in plain collections, a future, a state or an annotation that Prefect resolves."""
    seen = set() if seen is None else seen
    value_type = type(value)
    if value_type not in COLLECTIONS or id(value) in seen or depth == 0:
        return issubclass(value_type, PrefectFuture | State | BaseAnnotation)
    seen.add(id(value))
    items = value.values() if value_type is dict else value
    return not PLAIN.issuperset(map(type, items)) and any(holds_future(item, seen, depth - 1) for item in items)


PLAIN = frozenset({float, int, str, bool, bytes, type(None)})
COLLECTIONS = frozenset({list, tuple, set, frozenset, dict})


def to_api(function: Callable[..., Any], types: Types, parameters: Parameters, stored: Callable[[], str]) -> Parameters:
    """Parameters in the form for the API.

    Args:
        function: the function that has the signature.
        types: the types by the annotations.
        parameters: all arguments by name, defaults included.
        stored: puts the arguments into the store, and gives the payload's digest.

    Raises:
        PayloadError: an argument that must go to the store can't be pickled.
    """
    api_parameters: Parameters = {}
    total_left = ALL_ARGUMENTS
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in parameters:
            continue
        value = unwrap(parameters[name])
        form = _form(types.get(name), list(value) if parameter.kind is inspect.Parameter.VAR_POSITIONAL else value)
        unused = _weight(form, min(total_left, BUDGET))
        if unused >= 0:
            api_parameters[name], total_left = form, total_left - min(total_left, BUDGET) + unused
        elif value is not unwrap(parameter.default):  # else the function uses its own default
            api_parameters[name] = _reference(name, parameter, value, stored)
    return api_parameters


def _reference(name: str, parameter: inspect.Parameter, value: Any, stored: Callable[[], str]) -> Any:
    reference = {MARK: "" if holds_future(value) else stored(), "name": name, "type": _type_text(value)}
    # When Prefect starts a run again, it takes the elements of these two for arguments.
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return [reference]
    return {MARK: reference} if parameter.kind is inspect.Parameter.VAR_KEYWORD else reference


def _form(adapter: TypeAdapter[Any] | None, value: Any) -> Any:
    """The JSON form of a value, if the annotation makes an equal value of it; else a mark that it has none."""
    form, plain = value, is_small_plain(value)
    if adapter is None or not (plain or _has_json_form(value)):
        return value
    try:
        if not plain:
            form = adapter.dump_python(value, mode="json", warnings="error")
        return form if _is_same(cast_by(adapter, form), value) else OpaqueValue(value)
    except Exception:  # the value does not have the type of its annotation
        return OpaqueValue(value)


_SCALARS = (enum.Enum, datetime.date, datetime.time, datetime.timedelta, pathlib.PurePath, uuid.UUID, decimal.Decimal)


def _has_json_form(value: Any, depth: int = 10) -> bool:
    """Whether pydantic can write a value as JSON without consuming it, as it would an iterator."""
    value_type = type(value)
    if value_type in PLAIN or issubclass(value_type, _SCALARS):
        return True
    if issubclass(value_type, BaseModel) or dataclasses.is_dataclass(value_type):
        value = getattr(value, "__dict__", None)
    if type(value) not in COLLECTIONS or len(value) > BUDGET or depth == 0:
        return False
    elements = [*value, *value.values()] if type(value) is dict else value
    return all(_has_json_form(element, depth - 1) for element in elements)


def _is_same(value: Any, original: Any) -> bool:
    """Whether a cast value equals the original in type, text and value; a float may have come from a whole number."""
    if type(value) is float and type(original) is int:
        return value == original
    return type(value) is type(original) and repr(value) == repr(original) and bool(value == original)


def from_api(parameters: Parameters) -> Parameters:
    """The parameters with their references resolved to wrapped values.

    Raises:
        PayloadError: the store has no such payload any more.
    """
    payloads: dict[str, Parameters] = {}
    resolved = dict(parameters)
    for name, value in parameters.items():
        if (reference := _find_reference(value)) is None:
            continue
        digest = reference[MARK]
        if not digest:
            what = f"the argument {name!r} came from another flow run"
            raise PayloadError(what, advice="start the flow that called the function again")
        if digest not in payloads:
            payloads[digest] = store.get(digest)["parameters"]
        resolved[name] = OpaqueValue(payloads[digest][reference["name"]])
    return resolved


def _find_reference(value: Any) -> Any:
    """The reference in a parameter's value, or inside the value of `*args` and `**kwargs`; None without one."""
    inner: Any = value[0] if isinstance(value, tuple) and len(value) == 1 else value
    if isinstance(inner, dict) and isinstance(inner.get(MARK), dict):
        inner = inner[MARK]
    return inner if isinstance(inner, dict) and isinstance(inner.get(MARK), str) else None


def cast_all(function: Callable[..., Any], types: Types, parameters: Mapping[str, Any]) -> Parameters:
    """The parameters from the API, cast by the annotations; wrapped values and defaults stay as they are.

    Raises:
        ParameterTypeError: an argument does not have the type of its annotation.
    """
    signature, problems, cast_values = inspect.signature(function).parameters, [], dict(parameters)
    for name, value in parameters.items():
        try:
            if not isinstance(value, OpaqueValue) and value is not signature[name].default:
                cast_values[name] = cast_by(types.get(name), visit_collection(value, _with_block, return_data=True))
        except ValidationError as error:
            problems += [f"{'.'.join(map(str, [name, *detail['loc']]))}: {detail['msg']}" for detail in error.errors()]
    if problems:
        raise ParameterTypeError("\n - ".join(["Flow run received invalid parameters:", *problems]))
    return cast_values


def cast_by(adapter: TypeAdapter[Any] | None, value: Any) -> Any:
    """The value cast by its annotation; pydantic would make an iterator of an Iterable, which can be read only once."""
    if adapter is None:
        return value
    cast_value = adapter.validate_python(value)
    return list(cast_value) if isinstance(cast_value, Iterator) and not isinstance(value, Iterator) else cast_value


def _with_block(value: Any) -> Any:
    """The form in Prefect's UI gives a block as a reference to it."""
    if isinstance(value, dict) and isinstance(value.get("$ref"), dict):
        return Block.load_from_ref(value["$ref"], _sync=True)  # type: ignore[call-arg]
    return value


def is_small_plain(value: Any) -> bool:
    """Whether a value is small, and equal after a way through JSON."""
    return _weight(value, BUDGET) >= 0


def _type_text(value: Any) -> str:
    shape = getattr(value, "shape", None)
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{name}{tuple(shape)}" if isinstance(shape, tuple) else name


def _weight(value: Any, budget: int, depth: int = 100) -> int:
    """The budget minus this value's size; below zero for a value that is too large, or that JSON would change."""
    value_type = type(value)
    if value_type is str:
        fits = len(value) < budget and "\0" not in value and encodable(value) == value
        return budget - len(value) - 4 if fits else -1
    if (
        value is None
        or value_type is bool
        or (value_type is int and abs(value) < 2**53)
        or (value_type is float and math.isfinite(value))
    ):
        return budget - 8
    if value_type is list:
        return _total(value, budget, depth - 1)
    if value_type is dict and all(type(key) is str for key in value) and READ_BY_PREFECT.isdisjoint(value):
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
