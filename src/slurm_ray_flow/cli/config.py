"""`srf config`: the value of each option, and its source."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.names import A_CLUSTER
from slurm_ray_flow.cli.output import Json, print_json, print_table, print_text
from slurm_ray_flow.core.config import DEFAULT, FILE, PREFIX, PROGRAM, TABLE, Setting

if TYPE_CHECKING:
    from slurm_ray_flow.core.config import Settings
    from slurm_ray_flow.core.options import Options

BYTES, SECONDS = ("memory", "package_data"), ("time_limit", "warn_before", "keep_warm", "cache")


def config(
    function: str | None = None, *, cluster: Annotated[str | None, A_CLUSTER] = None, json: Json = False
) -> None:
    """Show each option's value, and where it comes from.

    The first of these that says something counts: the decorator, the cluster's block, the table
    [tool.slurm-ray-flow.clusters.NAME] of the project's pyproject.toml, its table [tool.slurm-ray-flow], the variable
    SRF_<OPTION>, the default.

    Examples:
        srf config

        srf config --cluster curnagl

        srf config train.py:train

        srf config --json

    Args:
        function: A decorated function, path/to/file.py:function; the file is imported. Else the working directory's
            project counts, and nothing is decorated.
        cluster: The cluster to show it for; what is configured by default.
    """
    from slurm_ray_flow.core.config import configured, origins

    options, settings = _options_and_settings(function)
    if cluster is not None:
        options = options.stating(cluster=cluster)
    name = configured(options, settings).cluster
    block, label, others = _block(name)
    values = origins(options, settings, block, label)
    if cluster is not None:
        values["cluster"] = dataclasses.replace(values["cluster"], origin="--cluster")
    if json:
        print_json(_json(settings, label, values, others))
        return
    print_table(["OPTION", "VALUE", "FROM"], [[key, _text(key, one.value), one.origin] for key, one in values.items()])
    if others:
        rows = [["  " + key, _text(key, one.value), one.origin] for key, one in others.items()]
        print_table([f"\n{label.upper()}", "\nVALUE", "\nFROM"], rows)
    print_table(["\nPROGRAM", "\nVALUE", "\nFROM"], [[PREFIX + key, *each] for key, each in _program().items()])
    print_text(f"\nProject: {settings.file or f'no {FILE} with [{TABLE}]'}")


def _options_and_settings(function: str | None) -> tuple[Options, Settings]:
    """The options in the code of a function, and the settings from elsewhere."""
    from slurm_ray_flow.core.options import Options
    from slurm_ray_flow.interface.settings import file_of, settings_for

    if function is None:
        return Options(), settings_for(None)
    from slurm_ray_flow.cli.run import load
    from slurm_ray_flow.interface.launch_flow import LaunchFlow

    loaded = load(function)
    if isinstance(loaded, LaunchFlow):
        return loaded.options, settings_for(file_of(loaded.plain))
    return Options(), settings_for(file_of(loaded))


def _block(cluster: Any) -> tuple[dict[str, Any], str, dict[str, Setting]]:
    """The fields of a cluster's block that are options, its name, and its other fields, without the connection."""
    from slurm_ray_flow.core.options import is_option

    if cluster == "local":
        return {}, "local", {}
    from slurm_ray_flow.cli.names import cluster_named
    from slurm_ray_flow.interface.settings import fields_of

    block = cluster_named(cluster) if isinstance(cluster, str) else cluster
    fields = fields_of(block)
    connection = fields.pop("connection", None)
    saved, defaults = f"block {block.label}", getattr(type(block), "model_fields", {})
    others = {
        name: Setting(value, DEFAULT if value == defaults[name].get_default() else saved)
        for name, value in fields.items()
        if not is_option(name) and value not in (None, "", [])
    }
    if connection is not None:
        address = {name: getattr(connection, name) for name in ("host", "user") if getattr(connection, name)}
        others = {**{name: Setting(value, saved) for name, value in address.items()}, **others}
    return fields, block.label, others


def _program() -> dict[str, tuple[str, str]]:
    """The settings of the command itself."""
    return {
        name: (os.environ[PREFIX + name], "the environment") if os.environ.get(PREFIX + name) else (default, "default")
        for name, (default, *_) in PROGRAM.items()
        if default or os.environ.get(PREFIX + name)
    }


def _text(name: str, value: Any) -> str:
    from slurm_ray_flow.core.quantities import format_duration, format_memory

    if name == "env_vars":  # their values may be secrets
        return ", ".join(key for key, _ in value)
    if value is None or value == () or (name in SECONDS and not value):
        return ""
    if name in BYTES:
        return format_memory(value)
    if name in SECONDS and value not in (0, float("inf")):
        return format_duration(value)
    return ", ".join(map(_name, value)) if isinstance(value, tuple | list) else _name(value)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", value))


def _json(settings: Settings, label: str, chosen: dict[str, Setting], others: dict[str, Setting]) -> dict[str, Any]:
    values = {name: _as_json(name, setting.value) for name, setting in chosen.items()}
    return {
        "project": str(settings.file) if settings.file else None,
        "cluster": label,
        "options": {name: {"value": values[name], "from": setting.origin} for name, setting in chosen.items()},
        "block": {
            name: {"value": _as_json(name, setting.value), "from": setting.origin} for name, setting in others.items()
        },
        "program": {PREFIX + name: {"value": value, "from": source} for name, (value, source) in _program().items()},
    }


def _as_json(name: str, value: Any) -> Any:
    if name == "env_vars":
        return [key for key, _ in value]
    if isinstance(value, tuple | list):
        return [_name(one) for one in value]
    return value if value is None or isinstance(value, str | int | float | bool) else _name(value)
