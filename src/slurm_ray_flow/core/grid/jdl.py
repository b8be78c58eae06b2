"""CiGri's description of a campaign, a JSON document, in our words. Pure functions.

A CiGri job is one item; each pilot has the resources of one job and runs one item at a time. What can't be honoured is
an error that names the field's path.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import shlex
from typing import Any

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.core.quantities import parse_duration

PARAMS = "params"
"""The field of an item's row that holds its line of parameters."""
Fields = dict[str, Any]
_TOP = ("name", "clusters", "params", "param_file", "nb_jobs", "jobs_type")
_OF_CLUSTERS = (
    "exec_file", "exec_directory", "resources", "properties", "walltime", "type", "cluster_job_type", "project",
    "prologue", "prologue_walltime", "epilogue", "epilogue_walltime", "test_mode", "max_jobs", "temporal_grouping",
)  # fmt: skip
_REFUSED = {
    "dimensional_grouping": "pilots run items beside one another as their cluster's cores allow",
    "output_gathering_method": "`outputs` of a Command bring files home",
    "checkpointing_type": "`checkpoint` of a function keeps files for a next try",
}
_RESOURCE = re.compile(r"(nodes|host|cpu|core|gpu)=(\d+)")
_PROPERTY = re.compile(r"(gpu|partition|qos|constraint)\s*=\s*'([^']+)'")
_PROPERTIES = "write gpu='YES', partition='NAME', qos='NAME' or constraint='FEATURE', joined by AND"
COMMAND_VARIABLE = "CAMPAIGN_COMMAND"
"""The variable with a cluster's own command, where clusters have different ones."""
SCRIPT_SECONDS = 600.0
"""What a prologue or an epilogue may take that has no walltime."""


@dataclasses.dataclass(frozen=True)
class OnCluster:
    """What a description wants on one cluster.

    Attributes:
        options: options of the decorator.
        max_pilots: the most pilots there; None for no limit of its own.
        command: what the shell runs for an item, with CiGri's macros; the item's parameters follow.
        folder: where it runs.
        scripts: the lines of `prologue` and `epilogue`, each with the seconds that they may take.
        best_effort: whether its jobs may be preempted.
    """

    options: Fields
    max_pilots: int | None
    command: str = ""
    folder: str = ""
    scripts: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    best_effort: bool = False


@dataclasses.dataclass(frozen=True)
class Description:
    """A campaign as CiGri's description has it.

    Attributes:
        name: its name.
        params: the items' parameters, a line each; None where `param_file` has them.
        param_file: the file that has them, as it was written; "" for none.
        clusters: what it wants on each cluster, by their names.
        test_mode: whether only one item for each cluster is to run.
    """

    name: str
    params: list[str] | None
    param_file: str
    clusters: dict[str, OnCluster]
    test_mode: bool


def read_description(text: str) -> Description:
    """Read a description.

    Raises:
        OptionError: it can't be read, lacks a field, or has one that can't be honoured; its path is named.
    """
    try:
        top = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"the description is no JSON: {error}") from None
    if not isinstance(top, dict):
        raise OptionError("the description is no JSON object")
    for field in top:
        _check_name(field, field, (*_TOP, *_OF_CLUSTERS))
    if "jobs_type" in top and top["jobs_type"] != "normal":
        why = "an item without parameters of its own that is repeated for ever is none of a campaign"
        raise _refused("jobs_type", why, 'write "normal", and nb_jobs for the number of items')
    name = _text(top, "name", "name")
    named = top.get("clusters")
    if not isinstance(named, dict) or not named:
        raise OptionError("clusters must be an object with a cluster or more", where="clusters")
    common = {field: value for field, value in top.items() if field in _OF_CLUSTERS}
    merged = {cluster: _merged(cluster, fields, common) for cluster, fields in named.items()}
    params, file = _params(top)
    is_test = _same("test_mode", {cluster: _switch(cluster, fields, "test_mode") for cluster, fields in merged.items()})
    on_clusters = {cluster: _on_cluster(cluster, fields) for cluster, fields in merged.items()}
    return Description(name, params, file, on_clusters, is_test)


def shell_command(description: Description, campaign_id: str) -> str:
    """The template of a `Command`, whose one field is `PARAMS`. The shell reads parameters as CiGri's does.

    Where clusters have different commands, it is `COMMAND_VARIABLE` that has them: see `variables_of`.
    """
    first, *others = {here.command for here in description.clusters.values()}
    if others:
        return f'eval "${COMMAND_VARIABLE}" {{{PARAMS}}}'
    quoted = shlex.quote(with_macros(first, campaign_id)).replace("{", "{{").replace("}", "}}")
    return f"eval {quoted} {{{PARAMS}}}"


def variables_of(description: Description, cluster: str, campaign_id: str) -> dict[str, str]:
    """The variables of a cluster's pilots that `shell_command` reads."""
    own = description.clusters[cluster].command
    differ = any(here.command != own for here in description.clusters.values())
    return {COMMAND_VARIABLE: with_macros(own, campaign_id)} if differ else {}


def with_macros(text: str, campaign_id: str) -> str:
    """A text of a description with its macros as the shell has them; `~` is the shell's own.

    An item has the job of its pilot: `remote/driver/pilot.py` sets the variable.
    """
    text = text.replace("{HOME}", "$HOME").replace("{OAR_JOB_ID}", "${OAR_JOB_ID}")
    return text.replace("{CAMPAIGN_ID}", campaign_id)


def _merged(cluster: str, fields: Any, common: Fields) -> Fields:
    if not isinstance(fields, dict):
        raise OptionError("it must be an object", where=f"clusters.{cluster}")
    for field in fields:
        _check_name(field, f"clusters.{cluster}.{field}", _OF_CLUSTERS)
    return {**common, **fields}


def _check_name(field: str, path: str, known: tuple[str, ...]) -> None:
    if field in _REFUSED:
        raise _refused(path, _REFUSED[field])
    if field not in known:
        near = difflib.get_close_matches(field, known, n=1)
        raise OptionError(f"{path} is no field that is known", where=path, advice=f"{near[0]!r}?" if near else "")


def _refused(path: str, why: str, advice: str = "leave it out") -> OptionError:
    return OptionError(f"{path} can't be honoured: {why}", where=path, advice=advice)


def _params(top: Fields) -> tuple[list[str] | None, str]:
    given = [field for field in ("params", "param_file", "nb_jobs") if field in top]
    if len(given) != 1:
        what = f"one of params, param_file and nb_jobs must be there, not {' and '.join(given) or 'none'}"
        raise OptionError(what, where=given[-1] if given else "params")
    if given == ["param_file"]:
        return None, _text(top, "param_file", "param_file")
    if given == ["nb_jobs"]:
        return [str(number) for number in range(_count(top, "nb_jobs", "nb_jobs"))], ""
    params = top["params"]
    if not isinstance(params, list) or not all(isinstance(line, str) for line in params):
        raise OptionError("params must be a list of texts", where="params")
    return params, ""


def _same(field: str, values: dict[str, Any]) -> Any:
    """The one value that all clusters have.

    Raises:
        OptionError: two of them have different ones.
    """
    first, *others = values
    for other in others:
        if values[other] != values[first]:
            why = f"{first} has another one, and all clusters of a campaign have the same"
            raise _refused(f"clusters.{other}.{field}", why)
    return values[first]


def _on_cluster(cluster: str, fields: Fields) -> OnCluster:
    path = f"clusters.{cluster}"
    if not _switch(cluster, fields, "temporal_grouping", default=True):
        why = "a pilot runs many items one after another; a start for each would take longer than most items"
        raise _refused(f"{path}.temporal_grouping", why)
    options = _resources(_text(fields, "resources", f"{path}.resources", "/core=1"), f"{path}.resources")
    if "properties" in fields:
        options |= _properties(_text(fields, "properties", f"{path}.properties"), f"{path}.properties", options)
    if "walltime" in fields:
        options["time_limit"] = _walltime(_text(fields, "walltime", f"{path}.walltime"), f"{path}.walltime")
    if "project" in fields:
        options["account"] = _text(fields, "project", f"{path}.project")
    most = _count(fields, "max_jobs", f"{path}.max_jobs") if "max_jobs" in fields else None
    program = _text(fields, "exec_file", f"{path}.exec_file")
    folder = _text(fields, "exec_directory", f"{path}.exec_directory", "{HOME}")
    scripts = {
        name: _script(fields, name, path) for name in ("prologue", "epilogue") if _has_script(fields, name, path)
    }
    return OnCluster(options, most, f"cd {folder} && {program}", folder, scripts, _is_best_effort(fields, path))


def _is_best_effort(fields: Fields, path: str) -> bool:
    """Whether jobs may be preempted: OAR's best-effort."""
    found = False
    for field in ("type", "cluster_job_type"):
        kind = fields.get(field, "normal")
        if kind not in ("normal", "best-effort", "besteffort"):
            raise _refused(f"{path}.{field}", f"{kind!r} is no type of jobs here", 'write "normal" or "best-effort"')
        found = found or kind != "normal"
    return found


def _has_script(fields: Fields, name: str, path: str) -> bool:
    if f"{name}_walltime" in fields and name not in fields:
        raise OptionError(f"{path}.{name}_walltime is there, and no {name}", where=f"{path}.{name}_walltime")
    return name in fields


def _script(fields: Fields, name: str, path: str) -> tuple[str, float]:
    """The lines of a prologue or an epilogue, and the seconds that they may take."""
    lines, limit = fields[name], f"{name}_walltime"
    if isinstance(lines, str):
        lines = [lines]
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise OptionError(f"{path}.{name} must be a list of commands", where=f"{path}.{name}")
    seconds = _walltime(_text(fields, limit, f"{path}.{limit}"), f"{path}.{limit}") if limit in fields else None
    return "\n".join(lines), seconds or SCRIPT_SECONDS


def _properties(text: str, path: str, options: Fields) -> Fields:
    """What a cluster without OAR can do of OAR's conditions on nodes, as options."""
    chosen: Fields = {}
    for part in re.split(r"\s+and\s+", text.strip(), flags=re.IGNORECASE):
        match = _PROPERTY.fullmatch(part.strip())
        if match is None:
            raise _refused(path, f"{part!r} says nothing of a cluster without OAR's database of nodes", _PROPERTIES)
        if match[1] != "gpu":
            chosen[match[1]] = match[2]
        elif match[2].upper() == "YES":
            chosen["gpus_per_node"] = options.get("gpus_per_node", 1)
        elif match[2].upper() != "NO" or "gpus_per_node" in options:
            raise _refused(path, f"{part!r} can't be meant beside these resources", _PROPERTIES)
    return chosen


def _resources(text: str, path: str) -> Fields:
    """OAR's resources as options: "/nodes=2/core=4,walltime=1:0:0"."""
    places, _, walltime = text.partition(",walltime=")
    counts: dict[str, int] = {}
    for part in filter(None, places.strip().split("/")):
        match = _RESOURCE.fullmatch(part.strip())
        if match is None or match[1] in counts:
            raise _refused(path, f"{part!r} has no clear meaning; write /nodes=1/core=4")
        counts[match[1]] = int(match[2])
    if 0 in counts.values() or ("core" not in counts and "gpu" not in counts) or {"nodes", "host"} <= counts.keys():
        raise _refused(path, f"{text!r} does not say how many cores; write /nodes=1/core=4")
    options: Fields = {"nodes": counts.get("nodes", counts.get("host", 1))}
    options["cpus_per_node"] = counts.get("cpu", 1) * counts.get("core", 1)
    if "gpu" in counts:
        options["gpus_per_node"] = counts["gpu"]
    if walltime:
        options["time_limit"] = _walltime(walltime, path)
    return options


def _walltime(text: str, path: str) -> float:
    """OAR's length of time: hours, or HH:MM, or HH:MM:SS."""
    parts = text.strip().split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isdecimal() for part in parts):
        raise OptionError(f"{text!r} is not a length of time", where=path, advice='write "02:30:00"')
    hours, minutes, seconds = (*map(int, parts), *([0] * (3 - len(parts))))
    return parse_duration(3600 * hours + 60 * minutes + seconds)


def _text(fields: Fields, field: str, path: str, default: str | None = None) -> str:
    value = fields.get(field, default)
    if not isinstance(value, str) or not value.strip():
        raise OptionError(f"{path} must be a text" if field in fields else f"{path} is missing", where=path)
    return value


def _count(fields: Fields, field: str, path: str) -> int:
    value = fields[field]
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError(f"{path} must be a whole number above 0", where=path)
    return value


def _switch(cluster: str, fields: Fields, field: str, default: bool = False) -> bool:
    value = fields.get(field, default)
    if value in ("true", "false"):
        return bool(value == "true")
    if not isinstance(value, bool):
        raise OptionError("it must be true or false", where=f"clusters.{cluster}.{field}")
    return value
