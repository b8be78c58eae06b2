"""What is configured outside of the code for a function (`core/config.py` says in which order)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slurm_ray_flow.core.config import Settings, beneath, configured, settings_of
from slurm_ray_flow.core.options import Options


def options_of(function: Callable[..., Any], options: Options) -> Options:
    """A function's options, with what its project and the environment say of those that the code leaves open.

    Raises:
        OptionError: what is configured is wrong, or does not fit to what the code says.
    """
    return configured(options, settings_for(file_of(function)))


def settings_for(file: Path | None) -> Settings:
    """What is configured for the functions of a file, or of the working directory."""
    return settings_of(file, Path.cwd(), os.environ)


def options_on(cluster: Any, options: Options) -> Options:
    """A function's options on a cluster, whose block goes before the project and the environment."""
    return beneath(options, fields_of(cluster))


def fields_of(cluster: Any) -> dict[str, Any]:
    """The fields of a cluster's block."""
    return {name: getattr(cluster, name) for name in getattr(type(cluster), "model_fields", {})}


def file_of(function: Callable[..., Any]) -> Path | None:
    """The file that a function stands in; None for one from a REPL or a notebook."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    path = Path(code.co_filename) if code else None
    return path if path and path.is_file() else None
