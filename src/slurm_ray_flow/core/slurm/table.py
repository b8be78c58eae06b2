"""A site as a table for people, and as plain values for scripts."""

from __future__ import annotations

from typing import Any

from slurm_ray_flow.core.quantities import format_duration, format_memory
from slurm_ray_flow.core.slurm.numbers import NO_LIMIT
from slurm_ray_flow.core.slurm.partitions import Partition
from slurm_ray_flow.core.slurm.site import Site

COLUMNS = ["PARTITION", "STATE", "LONGEST", "NODES", "CPUS", "MEMORY", "GPUS", "NOW", "NOTES"]


def site_rows(site: Site) -> list[list[str]]:
    """A line for each partition that is not hidden; CPUS, MEMORY and GPUS are those of its largest node."""
    return [_row(partition) for partition in site.partitions.values() if not partition.hidden]


def _row(partition: Partition) -> list[str]:
    return [
        partition.name,
        partition.state.lower(),
        _time(partition.max_time),
        _nodes(partition),
        str(partition.cpus_per_node) if partition.kinds else "",
        format_memory(partition.memory_per_node) if partition.kinds else "",
        _gpus(partition),
        _now(partition),
        _notes(partition),
    ]


def _time(seconds: float | None) -> str:
    return "" if seconds is None else "no limit" if seconds == NO_LIMIT else format_duration(seconds)


def _nodes(partition: Partition) -> str:
    most = f", at most {partition.max_nodes:.0f} a job" if partition.max_nodes < partition.nodes else ""
    return f"{partition.nodes}{most}"


def _gpus(partition: Partition) -> str:
    types = dict.fromkeys(name for kind in partition.kinds for name in kind.gpu_types)
    return " ".join([str(partition.gpus_per_node), *types]) if partition.gpus_per_node else ""


def _now(partition: Partition) -> str:
    """What is free, and how many nodes are in which state."""
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


def site_values(site: Site) -> dict[str, Any]:
    """The same for scripts: seconds, bytes and counts; null is no limit or not known."""
    return {"slurm": site.version, "partitions": [_values(partition) for partition in site.partitions.values()]}


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
