"""Options that the code does not give, from blocks, pyproject.toml and environment variables.

The first of these that gives an option counts: the decorator (or `.with_options`), the cluster's block, the table
`[tool.slurm-ray-flow.clusters.NAME]` of the project's pyproject.toml, its table `[tool.slurm-ray-flow]`, the variable
`SRF_<OPTION>`, and else its default.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slurm_ray_flow.core.errors import DependencyError, OptionError
from slurm_ray_flow.core.options import Options, check_together, checked, is_option, is_quantity
from slurm_ray_flow.core.project import project_of

TABLE = "tool.slurm-ray-flow"
FILE = "pyproject.toml"
PREFIX = "SRF_"
DECORATOR, DEFAULT = "the code", "default"


PROGRAM = {
    "HOME": ("~/.slurm-ray-flow", r"[/~].*", "a folder's whole path"),
    "PROGRESS": ("auto", r"auto|plain|off|0|no|false", '"auto", "plain" or "off"'),
    "LOG": ("off", r"off|debug", '"off" or "debug"'),
    "SERVER_PORT": ("", r"\d{1,5}", "a port"),
}
"""Settings of the program itself: the default of each, the pattern of its values, and the pattern in words."""
OTHERS = (
    "DATABASE_URL",
    "GRID_DATABASE_URL",
    "GRID_TOKEN",
    "WEBHOOK_URL",
    "UMASK",
    "RUN_ID",
    "ALLOCATION",
    "CHECKPOINTS",
    "NURSERY",
    "RAY_STARTED_IN",
)
"""Variables that are checked elsewhere, or that runs are given."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A value in its normal form, and the file or variable that gives it."""

    value: Any
    origin: str


Named = Mapping[str, Setting]


@dataclasses.dataclass(frozen=True)
class Settings:
    """All options from pyproject.toml and from environment variables.

    Attributes:
        file: the pyproject.toml with our table; None for none.
        general: its options for all clusters.
        clusters: its options for one cluster each.
        variables: options from environment variables.
    """

    file: Path | None = None
    general: Named = dataclasses.field(default_factory=dict)
    clusters: Mapping[str, Named] = dataclasses.field(default_factory=dict)
    variables: Named = dataclasses.field(default_factory=dict)

    def of(self, cluster: str) -> dict[str, Setting]:
        """The settings that hold on a cluster."""
        return {**self.variables, **self.general, **self.clusters.get(cluster, {})}


# ---- options of a function


def configured(options: Options, settings: Settings) -> Options:
    """The options of the code, completed from the settings.

    Raises:
        OptionError: the options do not fit to each other.
    """
    code_options = {name: getattr(options, name) for name in options.given}
    settings_here = settings.of(cluster_name(_cluster(options, settings)))
    values = {name: setting.value for name, setting in settings_here.items() if name not in code_options}
    options_here = dataclasses.replace(Options(**code_options, given=options.given), **values)
    try:
        check_together(options_here)
    except OptionError as error:
        raise _with_origins(error, values, settings_here) from None
    return options_here


def with_block_fields(options: Options, block: Mapping[str, Any]) -> Options:
    """The options on a cluster whose block has these fields: an option that the code does not give is reset to its
    default where the block sets it, so that the field of the block counts.
    """
    block_names = [name for name, value in block.items() if is_option(name) and value and name not in options.given]
    defaults = Options()
    return dataclasses.replace(options, **{name: getattr(defaults, name) for name in block_names})


def origins(options: Options, settings: Settings, block: Mapping[str, Any], label: str) -> dict[str, Setting]:
    """Each option's value on a cluster, and where it comes from.

    Args:
        options: the options that the code gives.
        settings: the settings of pyproject.toml and of variables.
        block: the fields of the cluster's block.
        label: the user's name for the cluster.
    """
    resolved = configured(options, settings)
    cluster_settings = settings.of(cluster_name(resolved.cluster))
    rows = {}
    for name in filter(is_option, vars(resolved)):
        if name in options.given:
            rows[name] = Setting(getattr(resolved, name), DECORATOR)
        elif block.get(name):
            rows[name] = Setting(block[name], f"block {label}")
        else:
            rows[name] = cluster_settings.get(name, Setting(getattr(resolved, name), DEFAULT))
    return rows


def cluster_name(cluster: Any) -> str:
    """A cluster's name, given as a name, "kind/name" or a block."""
    return str(cluster.rpartition("/")[2] if isinstance(cluster, str) else cluster.label)


def _cluster(options: Options, settings: Settings) -> Any:
    if "cluster" in options.given:
        return options.cluster
    configured_options = {**settings.variables, **settings.general}
    return configured_options["cluster"].value if "cluster" in configured_options else Options().cluster


def _with_origins(error: OptionError, names: Mapping[str, Any], settings: Named) -> OptionError:
    """The same error, with the file or variable of each option that it names."""
    origins_named = [f"{name} is set by {settings[name].origin}" for name in names if name in error.what]
    return OptionError(error.what, where="; ".join(origins_named), advice=error.advice)


# ---- files and variables


def settings_of(file: Path | None, working_directory: Path, environment: Mapping[str, str]) -> Settings:
    """The settings for a function.

    Args:
        file: the function's file; None for a REPL or a notebook, which belong to the working directory's project.
        working_directory: the working directory of this process.
        environment: the environment variables of this process.

    Raises:
        OptionError: a setting is wrong; names the file and the key, or the variable.
    """
    path = project_of(file, working_directory) / FILE
    project = Settings()
    with contextlib.suppress(OSError):  # no such file
        stat = path.stat()
        trusted_owners = {0, os.geteuid(), file.stat().st_uid if file else 0}  # not of whoever may write in /tmp
        if os.access(path, os.R_OK) and stat.st_uid in trusted_owners:
            project = _read(path, stat.st_mtime_ns, stat.st_size)
    return dataclasses.replace(project, variables=from_environment(environment))


@functools.lru_cache(maxsize=64)
def _read(path: Path, _changed: int, _size: int) -> Settings:
    from slurm_ray_flow.core.requirements.locks import read_toml

    try:
        table = read_toml(path).get("tool", {}).get("slurm-ray-flow")
    except DependencyError as error:
        raise OptionError(error.what, where=error.where, advice="mend the file") from None
    return Settings() if table is None else parse_table(table, path)


def parse_table(table: Any, path: Path) -> Settings:
    """Read the table `[tool.slurm-ray-flow]` of a pyproject.toml.

    Raises:
        OptionError: a key is no option, or its value can't be meant; names the file and the key.
    """
    if not isinstance(table, Mapping):
        raise OptionError(f"[{TABLE}] is no table", where=str(path), advice=f'write [{TABLE}] and memory = "4G"')
    general = {key: value for key, value in table.items() if key != "clusters"}
    clusters = table.get("clusters", {})
    if not isinstance(clusters, Mapping) or not all(isinstance(value, Mapping) for value in clusters.values()):
        advice = f"write a table for each cluster: [{TABLE}.clusters.curnagl]"
        raise OptionError("clusters is no table of tables", where=f"{path}, [{TABLE}]", advice=advice)
    for name, options in clusters.items():
        if "cluster" in options:
            advice = f"write cluster in [{TABLE}]"
            where = f"{path}, [{TABLE}.clusters.{name}]"
            raise OptionError("a cluster's own table can't choose the cluster", where=where, advice=advice)
    return Settings(
        path,
        _checked_settings(general, path, TABLE),
        {name: _checked_settings(options, path, f"{TABLE}.clusters.{name}") for name, options in clusters.items()},
    )


def _checked_settings(options: Mapping[str, Any], path: Path, table: str) -> dict[str, Setting]:
    settings = {}
    for key, value in options.items():
        name, where = key.replace("-", "_"), f"{path}, [{table}] {key}"
        try:
            settings[name] = Setting(checked({name: value})[name], f"{path.name} [{table}]")
        except OptionError as error:
            raise OptionError(error.what, where=where, advice=error.advice) from None
    return settings


def from_environment(environment: Mapping[str, str]) -> dict[str, Setting]:
    """Read the variables `SRF_<OPTION>`; empty ones are ignored. Lists and tables are written as JSON.

    Raises:
        OptionError: a value can't be meant; names the variable.
    """
    options = {}
    for variable, text in environment.items():
        name = variable.removeprefix(PREFIX).lower()
        if variable == PREFIX + name.upper() and is_option(name) and text:
            options[name] = Setting(_from_text(name, text, variable), variable)
    return options


def _from_text(name: str, text: str, variable: str) -> Any:
    """The value of a text: the text itself if the option accepts it, else its value as JSON."""
    try:
        as_json: Any = json.loads(text)
    except ValueError:
        as_json = text
    is_number = isinstance(as_json, int | float) and not isinstance(as_json, bool)
    if is_number and as_json and is_quantity(name):
        as_json = text  # a number without a unit
    candidates = [as_json, text] if isinstance(as_json, list | dict) else [text, as_json]
    problem: OptionError | None = None
    for candidate in candidates:
        try:
            return checked({name: candidate})[name]
        except OptionError as error:
            problem = problem or error
    assert problem is not None, "one of them was refused"
    advice = problem.advice or "write it as in the decorator; lists and tables as JSON"
    raise OptionError(problem.what, where=f"the variable {variable}", advice=advice)


def variable_warnings(environment: Mapping[str, str]) -> list[str]:
    """Warnings about variables `SRF_...` that are unknown or have a wrong value."""
    known_names = [*PROGRAM, *OTHERS, *(name.upper() for name in vars(Options()) if is_option(name))]
    warnings = []
    for variable, text in sorted(environment.items()):
        name = variable.removeprefix(PREFIX)
        if name == variable or name.endswith("PASSWORD"):  # of a cluster that is called so
            continue
        _, pattern, meaning = PROGRAM.get(name, ("", ".*", ""))
        if name not in known_names:
            near = difflib.get_close_matches(name.upper(), known_names, n=1)
            warnings.append(f"{variable} says nothing" + (f"; did you mean {PREFIX}{near[0]}?" if near else ""))
        elif text and not re.fullmatch(pattern, text, re.IGNORECASE | re.DOTALL):
            warnings.append(f"{variable}={text!r} can't be meant: it is {meaning}")
    return warnings
