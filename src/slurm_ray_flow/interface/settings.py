"""The settings of a function from outside of its code (`core/config.py` has their order), and its signature."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

from pydantic import TypeAdapter

from slurm_ray_flow.core.config import Settings, configured, settings_of, with_block_fields
from slurm_ray_flow.core.options import Options

Types = dict[str, TypeAdapter[Any] | None]
_warning_filters_lock = threading.Lock()
"""Held while the process's warning filters are changed, which two threads would mix up."""


def underlying(function: Callable[..., Any]) -> Any:
    """The plain function of a partial, a method or a callable object, whose source and globals count."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif not isinstance(function, FunctionType) and isinstance(type(function).__call__, FunctionType):
            function = type(function).__call__
        else:
            return function


def typed_signature(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of a function, its annotations evaluated as far as their names are defined yet.

    Raises:
        ValueError: the function has no signature.
    """
    signature = inspect.signature(function)
    names = getattr(inspect.unwrap(underlying(function)), "__globals__", {})
    evaluated = [one.replace(annotation=_evaluated(one.annotation, names)) for one in signature.parameters.values()]
    return signature.replace(parameters=evaluated)


def _evaluated(annotation: Any, names: dict[str, Any]) -> Any:
    try:
        while isinstance(annotation, str):  # a text may be quoted twice, where all annotations are texts
            annotation = eval(annotation, names)  # noqa: S307 - as `inspect` and every reader of annotations does
    except Exception:
        return inspect.Parameter.empty
    return annotation


def types_of(signature: inspect.Signature) -> Types:
    """The type adapter of each parameter; None for an unchecked one, where pydantic has no schema."""
    return {name: _type_adapter(parameter) for name, parameter in signature.parameters.items()}


def _type_adapter(parameter: inspect.Parameter) -> TypeAdapter[Any] | None:
    is_variadic = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if is_variadic or parameter.annotation is inspect.Parameter.empty or parameter.annotation is Any:
        return None
    with _warning_filters_lock, warnings.catch_warnings(), contextlib.suppress(Exception):
        warnings.simplefilter("ignore")
        adapter: TypeAdapter[Any] = TypeAdapter(parameter.annotation)
        return adapter if adapter.pydantic_complete else None
    return None


def shown_in_forms(signature: inspect.Signature) -> inspect.Signature:
    """The signature for Prefect's forms: without private names, and with annotations that pydantic has a schema for."""
    types = types_of(signature)
    parameters = [
        parameter if types[parameter.name] else parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in signature.parameters.values()
        if not parameter.name.startswith("_")
    ]
    return signature.replace(parameters=parameters)


def options_of(function: Callable[..., Any], options: Options) -> Options:
    """A function's options, completed from its project and the environment.

    Raises:
        OptionError: a configured value is wrong, or does not fit the options in the code.
    """
    return configured(options, settings_for(file_of(function)))


def settings_for(file: Path | None) -> Settings:
    """The settings for the functions of a file, or of the working directory."""
    return settings_of(file, Path.cwd(), os.environ)


def options_on(cluster: Any, options: Options) -> Options:
    """A function's options on a cluster, whose block takes precedence over the project and the environment."""
    return with_block_fields(options, fields_of(cluster))


def fields_of(cluster: Any) -> dict[str, Any]:
    """The fields of a cluster's block."""
    return {name: getattr(cluster, name) for name in getattr(type(cluster), "model_fields", {})}


def file_of(function: Callable[..., Any]) -> Path | None:
    """The file of a function; None for one from a REPL or a notebook."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    path = Path(code.co_filename) if code else None
    return path if path and path.is_file() else None
