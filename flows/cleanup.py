"""The flow that removes unused runs, snapshots, environments, tools and caches from clusters."""

from __future__ import annotations

import time

from prefect import flow
from prefect.artifacts import create_table_artifact

from slurm_ray_flow.blocks.clusters import saved_clusters
from slurm_ray_flow.core.artifacts import artifact_key
from slurm_ray_flow.core.clean_up import CleanUpReport, report_rows
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.tasks.clean_up import clean_up
from slurm_ray_flow.tasks.page import reported_once


@flow(name="cleanup", flow_run_name="cleanup")
def cleanup(cluster: str = "", older_than: str | None = None, dry_run: bool = False) -> list[CleanUpReport]:
    """Clean up one cluster, or this machine and all saved clusters; each gets an artifact.

    Args:
        cluster: the cluster's name; empty for all.
        older_than: how long unused files stay, such as "7d"; None for each cluster's own setting.
        dry_run: remove nothing, and report what would be removed.

    Raises:
        SlurmRayFlowError: a cluster could not be cleaned up; the others were.
    """
    with reported_once():
        names = [cluster] if cluster else ["local", *(saved.slug for saved in saved_clusters())]
        reports = [clean_up(name, older_than, dry_run) for name in names]
        for report in reports:
            _show(report)
        if failed := [report for report in reports if report.error]:
            raise SlurmRayFlowError("; ".join(report.total for report in failed), advice="srf check NAME says more")
        return reports


def _show(report: CleanUpReport) -> None:
    create_table_artifact(
        table=report_rows(report, time.time()), key=artifact_key("cleanup", report.cluster), description=report.total
    )
