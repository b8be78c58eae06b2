"""Removal of unused files from a cluster."""

from __future__ import annotations

from prefect import task
from uv import find_uv_bin

from slurm_ray_flow.blocks.clean_up import CleanUpRoot
from slurm_ray_flow.blocks.clean_up import clean_up as clean_up_root
from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.blocks.run_facts import LOCAL
from slurm_ray_flow.core.artifacts import short_name
from slurm_ray_flow.core.clean_up import KEPT_DAYS, CleanUpReport, retention_seconds
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.tasks.retry import ONCE


@task(name="clean_up", task_run_name="clean_up {name}", **ONCE)
def clean_up(name: str, older_than: str | None, dry_run: bool) -> CleanUpReport:
    """Clean up a cluster; a failure is noted in the report and not raised."""
    try:
        return cleaned_up(find_cluster(name), older_than, dry_run)
    except SlurmRayFlowError as error:
        return CleanUpReport(short_name(name), dry_run, error=str(error))


def cleaned_up(cluster: Cluster, older_than: str | None = None, dry_run: bool = False, run: str = "") -> CleanUpReport:
    """Clean up a cluster.

    Args:
        cluster: the cluster.
        older_than: how long unused files stay this once, such as "7d"; None for the cluster's own setting.
        dry_run: remove nothing.
        run: remove this run alone.

    Raises:
        SlurmRayFlowError: the cluster can't be reached, or the run lives.
    """
    seconds = retention_seconds(float(getattr(cluster, "retention_days", KEPT_DAYS)), older_than)
    root = CleanUpRoot(cluster.label, cluster.kind, str(cluster.root_folder), cluster.ask)
    uv = find_uv_bin() if cluster.kind == LOCAL else ""
    return clean_up_root(root, seconds, dry_run=dry_run, run=run, uv=uv)
