"""A shell command as the work of a campaign."""

from __future__ import annotations

import keyword
import shlex
import string
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.quantities import parse_duration
from slurm_ray_flow.interface.campaign import Campaign
from slurm_ray_flow.interface.campaign_start import CampaignOptions, OnCluster, script_of, start_campaign
from slurm_ray_flow.interface.decorator import slurm_ray_flow
from slurm_ray_flow.remote.driver.command import CommandResult

MODULE = "a shell command"
"""The module of the functions that are made here. There can be none of this name, so that they travel by value."""
_FIELD = typing.Union[str, int, float, bool, None]  # noqa: UP007 - a Python 3.9 on a cluster has no other form
_BODY = """
def run_command({parameters}**_srf_others):
    return _srf_run({{**_srf_others, {fields}}})


def _srf_run(fields):
    from slurm_ray_flow.remote.driver import command

    return command.run(TEMPLATE, OUTPUTS, fields)
"""


class Command:
    """A program for a shell, which a campaign runs for each row of values.

    A row's fields stand in braces, "./simulate --seed {seed} --rate {rate:.3f}", and are quoted for the shell; write
    {{ and }} for braces of the shell's own. Each item runs in a new folder, where the project's files are links. Its
    value is a `CommandResult`: exit code, seconds, and the content of its output files.

    Args:
        command: what the shell runs: bash where there is one, else sh.
        outputs: paths and globs of files that it writes in its folder, of at most 10 MiB each; with fields, too.
        prologue, epilogue: lines for the shell that each pilot runs once, before its first item and after its last one.
        prologue_limit, epilogue_limit: what they may take; then they are ended, and have failed.
        options: options of the decorator, such as `cluster`, `cpus_per_node`, `include` and `env_vars`.

    Raises:
        OptionError: the command or an option can't be meant.
    """

    def __init__(
        self,
        command: str,
        *,
        outputs: Sequence[str] = (),
        prologue: str = "",
        epilogue: str = "",
        prologue_limit: object = "10m",
        epilogue_limit: object = "10m",
        **options: Any,
    ) -> None:
        if not isinstance(command, str) or not command.strip():
            raise OptionError(f"command={command!r} must be a command for a shell", advice='write "./simulate {seed}"')
        if isinstance(outputs, str) or not all(isinstance(path, str) for path in outputs):
            raise OptionError(f"outputs={outputs!r} must be a list of paths", advice='write outputs=["out.csv"]')
        self.command, self.outputs = command, tuple(outputs)
        given = {"prologue": (prologue, prologue_limit), "epilogue": (epilogue, epilogue_limit)}
        self.scripts = {name: _script(name, *pair) for name, pair in given.items() if pair[0]}
        for path in self.outputs:
            if PurePath(path).is_absolute() or ".." in PurePath(path).parts:
                raise OptionError(f"the output {path!r} is not in the item's folder", advice="give a relative path")
        self.fields = _fields_of(command, self.outputs)
        _check_quotes(command)
        name = options.pop("name", None) or _name_of(command)
        include = [*options.pop("include", ()), *_files_of(command)]
        function = _function(name, command, self.outputs, self.fields)
        chosen = {"ray": "never", **options, "name": name, "include": list(dict.fromkeys(include))}
        self.flow: Any = slurm_ray_flow(**chosen)(function)

    def campaign(
        self,
        values: Iterable[Mapping[str, Any]] | Path,
        /,
        *,
        clusters: Sequence[Any] | None = None,
        name: str = "",
        weight: float = 1.0,
        retries: int = 0,
        max_failures: int | None = None,
        max_pilots: int = 8,
        key: str | Callable[[Any], Any] | None = None,
        max_queued: int | None = None,
    ) -> Campaign[CommandResult]:
        """Run the command for each row of values, in pilots: see `f.campaign` of a decorated function.

        Args:
            values: mappings, a pandas DataFrame, or the path of a .csv or .jsonl file.
            clusters, name, weight, retries, max_failures, max_pilots, key, max_queued: as for a function's campaign.

        Raises:
            OptionError: an option or a value can't be meant.
            TypeError: a row lacks a field.
        """
        wanted = CampaignOptions(
            name, weight, retries, max_failures, max_pilots, True, key, max_queued=max_queued, about=self.command
        )
        chosen = [self.flow.options.cluster] if clusters is None else clusters
        others = OnCluster(scripts=self.scripts)
        campaign_id, client = start_campaign(self.flow, values, chosen, wanted, {}, others=others)
        return Campaign(campaign_id, client, self.flow)

    def __repr__(self) -> str:
        return f"Command({self.command!r})"


def _script(name: str, lines: object, limit: object) -> dict[str, Any]:
    """A script around the items of a pilot.

    Raises:
        OptionError: it is no text, or its limit is no length of time.
    """
    if not isinstance(lines, str):
        raise OptionError(f"{name}={lines!r} must be lines for a shell", advice=f'write {name}="mkdir -p out"')
    return script_of(lines, parse_duration(limit, f"{name}_limit"))


def _function(name: str, command: str, outputs: Sequence[str], fields: Sequence[str]) -> Callable[..., Any]:
    """A function that runs the command, with the fields as its parameters."""
    parameters = "".join(f"{field}: FIELD, " for field in fields)
    pairs = ", ".join(f"{field!r}: {field}" for field in fields)
    body = _BODY.format(parameters=f"*, {parameters}" if fields else "", fields=pairs)
    names: dict[str, Any] = {"__name__": MODULE, "TEMPLATE": command, "OUTPUTS": list(outputs), "FIELD": _FIELD}
    exec(compile(body, f"<{name}>", "exec"), names)  # noqa: S102 - the fields are identifiers
    function: FunctionType = names["run_command"]
    function.__doc__ = command
    return function


def _fields_of(command: str, outputs: Sequence[str]) -> tuple[str, ...]:
    """The names in braces.

    Raises:
        OptionError: a text can't be read, or a name is none.
    """
    names: dict[str, None] = {}
    for text in (command, *outputs):
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            advice = "write {{ and }} for braces of the shell's own"
            raise OptionError(f"the braces can't be read: {error}", where=text, advice=advice) from None
        for _, name, _, _ in parsed:
            if name is None:
                continue
            if not name.isidentifier() or keyword.iskeyword(name):
                advice = "write {seed} for a field, and {{ and }} for braces of the shell's own"
                raise OptionError(f"{{{name}}} is no field", where=text, advice=advice)
            names[name] = None
    return tuple(names)


def _check_quotes(command: str) -> None:
    """Refuse a field inside quotes: its own quotes would end them.

    Raises:
        OptionError: there is one.
    """
    inside = ""
    for literal, name, _, _ in string.Formatter().parse(command):
        skip = False
        for letter in literal:
            if skip:
                skip = False
            elif letter == "\\" and inside != "'":
                skip = True
            elif inside:
                inside = "" if letter == inside else inside
            elif letter in "'\"":
                inside = letter
        if name is not None and inside:
            what = f"the field {{{name}}} stands inside quotes, and fields are quoted already"
            raise OptionError(what, where=command, advice=f"write --name={{{name}}} without quotes around it")


def _words_of(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def _name_of(command: str) -> str:
    return PurePath(next(iter(_words_of(command)), "command")).name or "command"


def _files_of(command: str) -> list[str]:
    """The files of the working directory that the command names: they travel along."""
    words = [word for word in _words_of(command) if "{" not in word and not PurePath(word).is_absolute()]
    return [str(PurePath(word)) for word in words if ".." not in PurePath(word).parts and Path(word).is_file()]
