"""What a run asks of Slurm: its own options, and where it has none, the cluster's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.core.slurm.names import job_name
from slurm_ray_flow.core.slurm.request import Request

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.slurm_cluster import SlurmCluster

CHOICES = ("partition", "account", "qos", "constraint")
"""What a run may choose for itself."""


def wanted(cluster: SlurmCluster, options: Options) -> Request:
    """What runs with these options ask for."""
    return Request(
        name="check",
        nodes=options.nodes,
        cpus_per_node=options.cpus_per_node,
        gpus_per_node=options.gpus_per_node,
        memory=options.memory,
        time_limit=_lasting(options.time_limit, options.keep_warm),
        **{name: getattr(options, name) or getattr(cluster, name) for name in CHOICES},
        reservation=cluster.reservation,
        exclude=cluster.exclude,
        extra=tuple(cluster.sbatch_options),
    )


def request_of(cluster: SlurmCluster, paths: RunPaths, spec: Mapping[str, Any]) -> Request:
    """The request of one run.

    Args:
        cluster: its block, with what holds for all its runs.
        paths: the run.
        spec: the run's spec.json.
    """
    chosen = spec.get("scheduler") or {}
    return Request(
        name=job_name(str(chosen.get("name", "")), paths.run_id),
        nodes=int(spec["nodes"]),
        cpus_per_node=spec["cpus"],
        gpus_per_node=int(spec["gpus"] or 0),
        memory=spec["memory"],
        time_limit=_lasting(spec["time_limit"], spec.get("keep_warm")),
        **{name: chosen.get(name) or getattr(cluster, name) for name in CHOICES},
        reservation=cluster.reservation,
        exclude=cluster.exclude,
        extra=tuple(cluster.sbatch_options),
        output=str(paths.head_log),
        chdir=str(paths.root),
        warn_seconds=int(spec.get("warn_seconds") or 0),
    )


def _lasting(time_limit: float | None, keep_warm: float | None) -> float | None:
    """How long the job may last: its call, and then the wait for the next one."""
    return None if time_limit is None else time_limit + (keep_warm or 0.0)
