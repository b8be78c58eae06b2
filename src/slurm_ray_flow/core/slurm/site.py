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
    """See that a request fits to the partition it names, or to the default one; of several, one has to do.

    What the site does not show is not judged.

    Raises:
        Rejected: it does not. The error has the limit's name and number, and the partitions that would do.
    """
    if not site.partitions:
        return  # a site may not show any; sbatch has the last word
    names = [name.strip() for name in request.partition.split(",") if name.strip()]
    for name in names:
        if name not in site.partitions:
            raise Rejected(f"there is no partition {name!r}", where=where, advice=_meant(name, site))
    asked = [site.partitions[name] for name in names] or ([site.default] if site.default else [])
    problems = [problem for partition in asked if (problem := _problem(request, partition, site))]
    if problems and len(problems) == len(asked):
        what, advice = problems[0]
        raise Rejected(what, where=where, advice=_advised(advice, would_do(request, site)))


def would_do(request: JobRequest, site: Site) -> list[str]:
    """The partitions that the request fits to."""
    return [
        partition.name
        for partition in site.partitions.values()
        if not partition.hidden and _problem(request, partition, site) is None
    ]


def _meant(name: str, site: Site) -> str:
    near = difflib.get_close_matches(name, site.partitions, n=1)
    if near:
        return f"did you mean partition={near[0]!r}?"
    shown = [known for known, partition in site.partitions.items() if not partition.hidden]
    return f"the partitions are {', '.join(shown)}"


def _advised(advice: str, names: list[str]) -> str:
    if not names:
        return f"{advice}; no partition has that"
    others = f", or one of {', '.join(names[1:])}" if names[1:] else ""
    return f"{advice}, or take partition={names[0]!r}{others}, which would do"


def _problem(request: JobRequest, partition: Partition, site: Site) -> Problem | None:
    checks: list[Callable[[], Problem | None]] = [
        lambda: _open(partition),
        lambda: _allowed(request, partition, site),
        lambda: _time(request, partition),
        lambda: _node_count(request, partition),
        lambda: _node_size(request, partition),
    ]
    return next((problem for check_one in checks if (problem := check_one())), None)


def _open(partition: Partition) -> Problem | None:
    if partition.state == "UP":
        return None
    words = {
        "DOWN": "starts no jobs now (it is DOWN)",
        "DRAIN": "takes no new jobs now (it is in DRAIN)",
        "INACTIVE": "takes and starts no jobs now (it is INACTIVE)",
    }
    return f"partition {partition.name} {words.get(partition.state, f'is {partition.state}')}", "try again later"


def _allowed(request: JobRequest, partition: Partition, site: Site) -> Problem | None:
    name = partition.name
    if partition.root_only:
        return f"partition {name} is for administrators only", "take another one"
    if partition.groups and site.groups is not None and not partition.groups & site.groups:
        return f"partition {name} is for the groups {_listed(partition.groups)} only", "ask the site for access"
    if partition.needs_reservation and not request.reservation:
        return f"partition {name} takes jobs of a reservation only", "write reservation=..."
    return _account(request.account, "account", partition.accounts, partition.denied_accounts, name) or _account(
        request.qos, "qos", partition.qos, partition.denied_qos, name
    )


def _account(given: str, option: str, allowed: frozenset[str], denied: frozenset[str], name: str) -> Problem | None:
    if given and allowed and given.lower() not in {one.lower() for one in allowed}:
        return f"{option}={given!r} may not use partition {name}", f"write {option}= with one of {_listed(allowed)}"
    if given and given in denied:
        return f"{option}={given!r} may not use partition {name}", f"write another {option}="
    return None


def _listed(names: frozenset[str]) -> str:
    few = sorted(names)[:6]
    return ", ".join(few) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _time(request: JobRequest, partition: Partition) -> Problem | None:
    if request.time_limit is None or partition.max_time is None or request.time_limit <= partition.max_time:
        return None
    wanted, most = format_duration(request.time_limit), format_duration(partition.max_time)
    what = f"time_limit={wanted} is more than the {most} of partition {partition.name}"
    return what, "ask for less time; what keep_warm adds counts, too"


def _node_count(request: JobRequest, partition: Partition) -> Problem | None:
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


def _node_size(request: JobRequest, partition: Partition) -> Problem | None:
    if not partition.kinds:
        return None
    name = partition.name
    if request.gpus_per_node > partition.gpus_per_node:
        has = f"the {partition.gpus_per_node} of a node in" if partition.gpus_per_node else "a node has in"
        return f"gpus_per_node={request.gpus_per_node} is more than {has} partition {name}", "ask for fewer GPUs"
    cpus = min(partition.cpus_per_node, partition.max_cpus)
    if (request.cpus_per_node or 0) > cpus:
        return f"cpus_per_node={request.cpus_per_node} is more than the {cpus:.0f} of a node in partition {name}", (
            "ask for fewer CPUs"
        )
    most = min(partition.memory_per_node, partition.max_memory)
    if (request.memory or 0) > most:
        wanted, has = format_memory(request.memory or 0), format_memory(most)
        return f"memory={wanted} is more than the {has} of a node in partition {name}", "ask for less memory"
    return _together(request, partition)


def _together(request: JobRequest, partition: Partition) -> Problem | None:
    fitting = sum(kind.count for kind in partition.kinds if _fits(request, kind))
    if fitting >= request.nodes:
        return None
    wanted = [f"{request.cpus_per_node} CPUs"] if request.cpus_per_node else []
    wanted += [format_memory(request.memory)] if request.memory else []
    wanted += [f"{request.gpus_per_node} GPUs"] if request.gpus_per_node else []
    wanted += [f"the feature {request.constraint!r}"] if _plain(request.constraint) else []
    has = f"{fitting} of the nodes in partition {partition.name} {'has' if fitting == 1 else 'have'}"
    return f"nodes={request.nodes}, but {has} {' and '.join(wanted)}", "ask for others"


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
    """A line for each partition that is not hidden; CPUS, MEMORY and GPUS are those of its largest node.

    The values for scripts have all of them, in seconds, bytes and counts; null is no limit or not known.
    """
    partitions = site.partitions.values()
    values = {"slurm": site.version, "partitions": [_values(partition) for partition in partitions]}
    return PartitionTable(COLUMNS, [_row(partition) for partition in partitions if not partition.hidden], values)


def _row(partition: Partition) -> list[str]:
    return [
        partition.name,
        partition.state.lower(),
        _time_cell(partition.max_time),
        _nodes(partition),
        str(partition.cpus_per_node) if partition.kinds else "",
        format_memory(partition.memory_per_node) if partition.kinds else "",
        _gpus(partition),
        _now(partition),
        _notes(partition),
    ]


def _time_cell(seconds: float | None) -> str:
    return "" if seconds is None else "no limit" if seconds == NO_LIMIT else format_duration(seconds)


def _nodes(partition: Partition) -> str:
    most = f", at most {partition.max_nodes:.0f} a job" if partition.max_nodes < partition.nodes else ""
    return f"{partition.nodes}{most}"


def _gpus(partition: Partition) -> str:
    types = dict.fromkeys(name for kind in partition.kinds for name in kind.gpu_types)
    return " ".join([str(partition.gpus_per_node), *types]) if partition.gpus_per_node else ""


def _now(partition: Partition) -> str:
    """The free resources, and the number of nodes in each state."""
    states = [f"{number} {state}" for state, number in partition.node_states.items()]
    load = [] if partition.load is None else [f"{100 * partition.load:.0f} % of CPUs taken"]
    return ", ".join([*load, *_gpu_load(partition), *states])


def _gpu_load(partition: Partition) -> list[str]:
    there = [kind for kind in partition.kinds if not kind.away]
    used, number = sum(kind.gpus_used for kind in there), sum(kind.gpus * kind.count for kind in there)
    return [f"{used} of {number} GPUs taken"] if number else []


def _notes(partition: Partition) -> str:
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
    there = [kind for kind in partition.kinds if not kind.away]
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
        "cpus_taken": sum(kind.cpus_used for kind in there),
        "cpus_free": sum(kind.cpus_idle for kind in there),
        "gpus_taken": sum(kind.gpus_used for kind in there),
        "gpus": sum(kind.gpus * kind.count for kind in there),
        "groups": sorted(partition.groups),
        "accounts": sorted(partition.accounts),
        "qos": sorted(partition.qos),
    }


def _finite(value: float | None) -> float | None:
    return None if value == NO_LIMIT else value


NAME = "slurm"


def slurm_finding(site: Site, request: JobRequest) -> CheckResult:
    """Whether the site would take a job that asks for nothing but what the cluster's block says.

    Args:
        site: what it has.
        request: such a job.
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
    return CheckResult(
        NAME, "ok", f"{site.version or 'of unknown version'}, {partitions}; jobs go to {_place(site, request)}"
    )


def _place(site: Site, request: JobRequest) -> str:
    if request.partition:
        return request.partition
    return f"{site.default.name}, the default" if site.default else "where the site puts them"
