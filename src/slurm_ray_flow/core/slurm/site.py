"""A Slurm site, and whether a request fits to it, before anything is submitted.

Slurm itself takes many jobs that can never start, and lets them wait (EnforcePartLimits is off by default).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable
from typing import Any

from slurm_ray_flow.core.cluster_report import CheckResult, PartitionTable
from slurm_ray_flow.core.errors import OptionError, Rejected
from slurm_ray_flow.core.quantities import format_duration, format_memory
from slurm_ray_flow.core.scheduler import JobRequest
from slurm_ray_flow.core.slurm.partitions import (
    NODES_COMMAND,
    PARTITIONS_COMMAND,
    NodeKind,
    Partition,
    parse_nodes,
    parse_partitions,
)
from slurm_ray_flow.core.slurm.queue import NO_LIMIT
from slurm_ray_flow.core.slurm.request import sbatch_arguments

Problem = tuple[str, str]  # what is wrong, and what to try


@dataclasses.dataclass(frozen=True)
class Site:
    """The partitions and the version of a site, as its user sees them.

    Attributes:
        partitions: by name, in the site's order.
        version: Slurm's, "22.05.8"; "" where it is not known.
        groups: the user's groups there; None where they are not known.
    """

    partitions: dict[str, Partition]
    version: str = ""
    groups: frozenset[str] | None = None

    @property
    def default(self) -> Partition | None:
        """The partition of a job that names none."""
        return next((partition for partition in self.partitions.values() if partition.default), None)


def site_commands() -> dict[str, list[str]]:
    """The commands that describe a site, by the names of `parse_site`'s parameters."""
    return {
        "partitions": PARTITIONS_COMMAND,
        "nodes": NODES_COMMAND,
        "version": ["sinfo", "--version"],
        "groups": ["id", "-Gn"],
    }


def parse_site(partitions: str, nodes: str, version: str = "", groups: str = "") -> Site:
    """The site from the answers to `site_commands`."""
    match = re.search(r"^slurm\S* (\d+\.\d+\S*)", version, re.MULTILINE)
    return Site(
        partitions=parse_partitions(partitions, parse_nodes(nodes)),
        version=match[1] if match else "",
        groups=frozenset(groups.split()) or None,
    )


def check(request: JobRequest, site: Site, where: str = "") -> None:
    """Check that a request fits to its partition, or the default one; of several partitions one must fit.

    Resources that the site does not show are not checked.

    Raises:
        Rejected: it does not fit. The error has the limit's name and number, and the partitions that fit.
    """
    if not site.partitions:
        return  # a site may hide them; then only sbatch decides
    names = [name.strip() for name in request.partition.split(",") if name.strip()]
    for name in names:
        if name not in site.partitions:
            raise Rejected(f"there is no partition {name!r}", where=where, advice=_suggestion(name, site))
    requested = [site.partitions[name] for name in names] or ([site.default] if site.default else [])
    problems = [problem for partition in requested if (problem := _problem(request, partition, site))]
    if problems and len(problems) == len(requested):
        what, advice = problems[0]
        raise Rejected(what, where=where, advice=_with_partitions(advice, would_do(request, site)))


def would_do(request: JobRequest, site: Site) -> list[str]:
    """The partitions that the request fits to."""
    return [
        partition.name
        for partition in site.partitions.values()
        if not partition.hidden and _problem(request, partition, site) is None
    ]


def _suggestion(name: str, site: Site) -> str:
    close_matches = difflib.get_close_matches(name, site.partitions, n=1)
    if close_matches:
        return f"did you mean partition={close_matches[0]!r}?"
    visible = [name_shown for name_shown, partition in site.partitions.items() if not partition.hidden]
    return f"the partitions are {', '.join(visible)}"


def _with_partitions(advice: str, names: list[str]) -> str:
    if not names:
        return f"{advice}; no partition has that"
    alternatives = f", or one of {', '.join(names[1:])}" if names[1:] else ""
    return f"{advice}, or take partition={names[0]!r}{alternatives}, which would do"


def _problem(request: JobRequest, partition: Partition, site: Site) -> Problem | None:
    checks: list[Callable[[], Problem | None]] = [
        lambda: _not_up(partition),
        lambda: _not_allowed(request, partition, site),
        lambda: _too_long(request, partition),
        lambda: _wrong_node_count(request, partition),
        lambda: _too_large(request, partition),
    ]
    return next((problem for check_one in checks if (problem := check_one())), None)


def _not_up(partition: Partition) -> Problem | None:
    if partition.state == "UP":
        return None
    words = {
        "DOWN": "starts no jobs now (it is DOWN)",
        "DRAIN": "takes no new jobs now (it is in DRAIN)",
        "INACTIVE": "takes and starts no jobs now (it is INACTIVE)",
    }
    return f"partition {partition.name} {words.get(partition.state, f'is {partition.state}')}", "try again later"


def _not_allowed(request: JobRequest, partition: Partition, site: Site) -> Problem | None:
    name = partition.name
    if partition.root_only:
        return f"partition {name} is for administrators only", "take another one"
    if partition.groups and site.groups is not None and not partition.groups & site.groups:
        return f"partition {name} is for the groups {_some_of(partition.groups)} only", "ask the site for access"
    if partition.needs_reservation and not request.reservation:
        return f"partition {name} takes jobs of a reservation only", "write reservation=..."
    return _denied_name(
        request.account, "account", partition.accounts, partition.denied_accounts, name
    ) or _denied_name(request.qos, "qos", partition.qos, partition.denied_qos, name)


def _denied_name(value: str, option: str, allowed: frozenset[str], denied: frozenset[str], name: str) -> Problem | None:
    if value and allowed and value.lower() not in {allowed_name.lower() for allowed_name in allowed}:
        return (
            f"{option}={value!r} may not use partition {name}",
            f"write {option}= with one of {_some_of(allowed)}",
        )
    if value and value in denied:
        return f"{option}={value!r} may not use partition {name}", f"write another {option}="
    return None


def _some_of(names: frozenset[str]) -> str:
    few = sorted(names)[:6]
    return ", ".join(few) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _too_long(request: JobRequest, partition: Partition) -> Problem | None:
    if request.time_limit is None or partition.max_time is None or request.time_limit <= partition.max_time:
        return None
    requested, allowed = format_duration(request.time_limit), format_duration(partition.max_time)
    text = f"time_limit={requested} is more than the {allowed} of partition {partition.name}"
    return text, "ask for less time; what keep_warm adds counts, too"


def _wrong_node_count(request: JobRequest, partition: Partition) -> Problem | None:
    most = min(partition.max_nodes, partition.nodes) if partition.kinds else partition.max_nodes
    if request.nodes > most:
        kind = "a job may have" if partition.max_nodes <= partition.nodes else "there are"
        return f"nodes={request.nodes} is more than the {most:.0f} {kind} in partition {partition.name}", (
            "ask for fewer nodes"
        )
    if request.nodes < partition.min_nodes:
        least = f"{partition.min_nodes:.0f}"
        return f"nodes={request.nodes} is less than the {least} that partition {partition.name} wants", (
            f"write nodes={least}"
        )
    return None


def _too_large(request: JobRequest, partition: Partition) -> Problem | None:
    if not partition.kinds:
        return None
    name = partition.name
    if request.gpus_per_node > partition.gpus_per_node:
        available = f"the {partition.gpus_per_node} of a node in" if partition.gpus_per_node else "a node has in"
        return f"gpus_per_node={request.gpus_per_node} is more than {available} partition {name}", "ask for fewer GPUs"
    cpus = min(partition.cpus_per_node, partition.max_cpus)
    if (request.cpus_per_node or 0) > cpus:
        return f"cpus_per_node={request.cpus_per_node} is more than the {cpus:.0f} of a node in partition {name}", (
            "ask for fewer CPUs"
        )
    memory_limit = min(partition.memory_per_node, partition.max_memory)
    if (request.memory or 0) > memory_limit:
        requested, available = format_memory(request.memory or 0), format_memory(memory_limit)
        return f"memory={requested} is more than the {available} of a node in partition {name}", "ask for less memory"
    return _too_few_nodes(request, partition)


def _too_few_nodes(request: JobRequest, partition: Partition) -> Problem | None:
    fitting = sum(kind.count for kind in partition.kinds if _fits(request, kind))
    if fitting >= request.nodes:
        return None
    needs = [f"{request.cpus_per_node} CPUs"] if request.cpus_per_node else []
    needs += [format_memory(request.memory)] if request.memory else []
    needs += [f"{request.gpus_per_node} GPUs"] if request.gpus_per_node else []
    needs += [f"the feature {request.constraint!r}"] if _plain(request.constraint) else []
    nodes_with = f"{fitting} of the nodes in partition {partition.name} {'has' if fitting == 1 else 'have'}"
    return f"nodes={request.nodes}, but {nodes_with} {' and '.join(needs)}", "ask for others"


def _fits(request: JobRequest, kind: NodeKind) -> bool:
    return (
        kind.cpus >= (request.cpus_per_node or 0)
        and kind.memory >= (request.memory or 0)
        and kind.gpus >= request.gpus_per_node
        and (not _plain(request.constraint) or request.constraint in kind.features)
    )


def _plain(constraint: str) -> bool:
    """Whether a constraint is the name of one feature; one with operators is left to Slurm."""
    return re.fullmatch(r"[\w.-]+", constraint) is not None


COLUMNS = ["PARTITION", "STATE", "LONGEST", "NODES", "CPUS", "MEMORY", "GPUS", "NOW", "NOTES"]


def partition_table(site: Site) -> PartitionTable:
    """A row for each partition that is not hidden; CPUS, MEMORY and GPUS are those of its largest node.

    The values for scripts have all partitions, in seconds, bytes and counts; null is no limit or not known.
    """
    partitions = site.partitions.values()
    values = {"slurm": site.version, "partitions": [_values(partition) for partition in partitions]}
    return PartitionTable(COLUMNS, [_row(partition) for partition in partitions if not partition.hidden], values)


def _row(partition: Partition) -> list[str]:
    return [
        partition.name,
        partition.state.lower(),
        _time_cell(partition.max_time),
        _node_cell(partition),
        str(partition.cpus_per_node) if partition.kinds else "",
        format_memory(partition.memory_per_node) if partition.kinds else "",
        _gpu_cell(partition),
        _load_cell(partition),
        _note_cell(partition),
    ]


def _time_cell(seconds: float | None) -> str:
    return "" if seconds is None else "no limit" if seconds == NO_LIMIT else format_duration(seconds)


def _node_cell(partition: Partition) -> str:
    most = f", at most {partition.max_nodes:.0f} a job" if partition.max_nodes < partition.nodes else ""
    return f"{partition.nodes}{most}"


def _gpu_cell(partition: Partition) -> str:
    types = dict.fromkeys(name for kind in partition.kinds for name in kind.gpu_types)
    return " ".join([str(partition.gpus_per_node), *types]) if partition.gpus_per_node else ""


def _load_cell(partition: Partition) -> str:
    """The free resources, and the number of nodes in each state."""
    states = [f"{number} {state}" for state, number in partition.node_states.items()]
    load = [] if partition.load is None else [f"{100 * partition.load:.0f} % of CPUs taken"]
    return ", ".join([*load, *_gpu_load(partition), *states])


def _gpu_load(partition: Partition) -> list[str]:
    usable = [kind for kind in partition.kinds if not kind.away]
    used, number = sum(kind.gpus_used for kind in usable), sum(kind.gpus * kind.count for kind in usable)
    return [f"{used} of {number} GPUs taken"] if number else []


def _note_cell(partition: Partition) -> str:
    notes = {
        "default": partition.default,
        "jobs may be preempted": partition.preemptible,
        "reservation only": partition.needs_reservation,
        "administrators only": partition.root_only,
        f"groups {', '.join(sorted(partition.groups))}": bool(partition.groups),
        f"accounts {', '.join(sorted(partition.accounts))}": bool(partition.accounts),
        f"QoS {', '.join(sorted(partition.qos))}": bool(partition.qos),
    }
    return "; ".join(note for note, holds in notes.items() if holds)


def _values(partition: Partition) -> dict[str, Any]:
    usable = [kind for kind in partition.kinds if not kind.away]
    return {
        "name": partition.name,
        "state": partition.state,
        "default": partition.default,
        "hidden": partition.hidden,
        "preemptible": partition.preemptible,
        "max_time": _finite(partition.max_time),
        "default_time": _finite(partition.default_time),
        "max_nodes": _finite(partition.max_nodes),
        "nodes": partition.nodes,
        "node_states": partition.node_states,
        "cpus_per_node": partition.cpus_per_node,
        "memory_per_node": partition.memory_per_node,
        "gpus_per_node": partition.gpus_per_node,
        "cpus_taken": sum(kind.cpus_used for kind in usable),
        "cpus_free": sum(kind.cpus_idle for kind in usable),
        "gpus_taken": sum(kind.gpus_used for kind in usable),
        "gpus": sum(kind.gpus * kind.count for kind in usable),
        "groups": sorted(partition.groups),
        "accounts": sorted(partition.accounts),
        "qos": sorted(partition.qos),
    }


def _finite(value: float | None) -> float | None:
    return None if value == NO_LIMIT else value


NAME = "slurm"


def slurm_finding(site: Site, request: JobRequest) -> CheckResult:
    """Whether the site accepts a job that requests no more than the cluster's block says.

    Args:
        site: the site.
        request: the request of such a job.
    """
    if not site.partitions:
        return CheckResult(NAME, "warning", "it shows no partition", "`sinfo` there says whether you may use any")
    try:
        sbatch_arguments(request)
        check(request, site)
    except (OptionError, Rejected) as error:
        return CheckResult(NAME, "failed", error.what, error.advice)
    shown = sum(not partition.hidden for partition in site.partitions.values())
    partitions = "1 partition" if shown == 1 else f"{shown} partitions"
    target = request.partition or (f"{site.default.name}, the default" if site.default else "where the site puts them")
    return CheckResult(NAME, "ok", f"{site.version or 'of unknown version'}, {partitions}; jobs go to {target}")
