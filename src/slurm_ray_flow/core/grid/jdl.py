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
    "exec_file", "exec_directory", "resources", "walltime", "type", "project", "test_mode", "max_jobs",
    "temporal_grouping",
)  # fmt: skip
_REFUSED = {
    "properties": "it is SQL about the nodes of OAR; choose nodes by the options `partition` or `constraint`",
    "cluster_job_type": "no type of OAR's jobs is known here",
    "dimensional_grouping": "pilots run items beside one another as their cluster's cores allow",
    "prologue": "nothing runs once on a cluster before its items: run it yourself, or at the start of exec_file",
    "epilogue": "nothing runs once on a cluster after its items: run it yourself when `srf grid watch` has ended",
    "prologue_walltime": "there is no prologue",
    "epilogue_walltime": "there is no epilogue",
    "output_gathering_method": "`outputs` of a Command bring files home",
    "checkpointing_type": "`checkpoint` of a function keeps files for a next try",
}
_RESOURCE = re.compile(r"(nodes|host|cpu|core|gpu)=(\d+)")


@dataclasses.dataclass(frozen=True)
class OnCluster:
    """What a description wants on one cluster.

    Attributes:
        options: options of the decorator.
        max_pilots: the most pilots there; None for no limit of its own.
    """

    options: Fields
    max_pilots: int | None


@dataclasses.dataclass(frozen=True)
class Description:
    """A campaign as CiGri's description has it.

    Attributes:
        name: its name.
        command: what the shell runs for an item, with CiGri's macros; the item's parameters follow.
        params: the items' parameters, a line each; None where `param_file` has them.
        param_file: the file that has them, as it was written; "" for none.
        clusters: what it wants on each cluster, by their names.
        test_mode: whether only one item for each cluster is to run.
    """

    name: str
    command: str
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
        raise _refused("jobs_type", 'only "normal" is known')
    name = _text(top, "name", "name")
    named = top.get("clusters")
    if not isinstance(named, dict) or not named:
        raise OptionError("clusters must be an object with a cluster or more", where="clusters")
    common = {field: value for field, value in top.items() if field in _OF_CLUSTERS}
    merged = {cluster: _merged(cluster, fields, common) for cluster, fields in named.items()}
    params, file = _params(top)
    command = _same("command", {cluster: _command(cluster, fields) for cluster, fields in merged.items()})
    is_test = _same("test_mode", {cluster: _switch(cluster, fields, "test_mode") for cluster, fields in merged.items()})
    on_clusters = {cluster: _on_cluster(cluster, fields) for cluster, fields in merged.items()}
    return Description(name, command, params, file, on_clusters, is_test)


def shell_command(description: Description, campaign_id: str) -> str:
    """The template of a `Command`, whose one field is `PARAMS`. The shell reads parameters as CiGri's does."""
    text = with_macros(description.command, campaign_id)
    quoted = shlex.quote(text).replace("{", "{{").replace("}", "}}")
    return f"eval {quoted} {{{PARAMS}}}"


def with_macros(text: str, campaign_id: str) -> str:
    """A text of a description with its macros as the shell has them; `~` is the shell's own.

    Raises:
        OptionError: a macro means nothing here.
    """
    text = text.replace("{HOME}", "$HOME").replace("{CAMPAIGN_ID}", campaign_id)
    if "{OAR_JOB_ID}" in text:
        raise _refused("{OAR_JOB_ID}", "an item is no job of OAR's; $SRF_RUN_ID is the run of its pilot")
    return text


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


def _refused(path: str, why: str) -> OptionError:
    return OptionError(f"{path} can't be honoured: {why}", where=path, advice="leave it out")


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


def _command(cluster: str, fields: Fields) -> str:
    program = _text(fields, "exec_file", f"clusters.{cluster}.exec_file")
    folder = _text(fields, "exec_directory", f"clusters.{cluster}.exec_directory", "{HOME}")
    return f"cd {folder} && {program}"


def _same(field: str, values: dict[str, Any]) -> Any:
    """The one value that all clusters have.

    Raises:
        OptionError: two of them have different ones.
    """
    first, *others = values
    for other in others:
        if values[other] != values[first]:
            shown = "exec_file" if field == "command" else field
            why = f"{first} has another one, and all clusters of a campaign run the same"
            raise _refused(f"clusters.{other}.{shown}", why)
    return values[first]


def _on_cluster(cluster: str, fields: Fields) -> OnCluster:
    path = f"clusters.{cluster}"
    if fields.get("type", "normal") != "normal":
        why = "a pilot is an ordinary job; for one that may be preempted choose a partition or a `qos` of that kind"
        raise _refused(f"{path}.type", why)
    if not _switch(cluster, fields, "temporal_grouping", default=True):
        raise _refused(f"{path}.temporal_grouping", "a pilot runs many items one after another")
    options = _resources(_text(fields, "resources", f"{path}.resources", "/core=1"), f"{path}.resources")
    if "walltime" in fields:
        options["time_limit"] = _walltime(_text(fields, "walltime", f"{path}.walltime"), f"{path}.walltime")
    if "project" in fields:
        options["account"] = _text(fields, "project", f"{path}.project")
    most = _count(fields, "max_jobs", f"{path}.max_jobs") if "max_jobs" in fields else None
    return OnCluster(options, most)


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
