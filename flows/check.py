"""The flow that checks whether a cluster can be used."""

from __future__ import annotations

from prefect import flow
from prefect.artifacts import create_table_artifact

from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.core.artifacts import artifact_key, short_name
from slurm_ray_flow.core.cluster_report import CheckResult
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.tasks.cluster_report import report
from slurm_ray_flow.tasks.page import reported_once


@flow(name="check")
def check(cluster: str = "local") -> list[CheckResult]:
    """Check whether a cluster can be reached and has what runs need, and show the findings as an artifact.

    Args:
        cluster: the cluster's name.

    Raises:
        SlurmRayFlowError: a check failed; the artifact says what to do.
    """
    with reported_once():
        cluster_report = report(find_cluster(cluster), "findings")
        key, description = artifact_key("check", short_name(cluster)), f"{cluster}: {len(cluster_report.failed)} failed"
        create_table_artifact(table=cluster_report.to_json()["findings"], key=key, description=description)
        if cluster_report.down:
            what = "; ".join(f"{finding.name}: {finding.found}" for finding in cluster_report.failed)
            raise SlurmRayFlowError(what, where=cluster, advice=cluster_report.failed[0].advice)
        return list(cluster_report.findings or ())
