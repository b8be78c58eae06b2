"""The flow that checks whether a cluster can be used."""

from __future__ import annotations

import dataclasses

from prefect import flow
from prefect.artifacts import create_table_artifact

from slurm_ray_flow.blocks.clusters import find_cluster
from slurm_ray_flow.core.artifacts import artifact_key, short_name
from slurm_ray_flow.core.cluster_report import CheckResult
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.tasks.cluster_report import check as findings_of
from slurm_ray_flow.tasks.end_report import reported_once


@flow(name="check")
def check(cluster: str = "local") -> list[CheckResult]:
    """Check whether a cluster can be reached and has what runs need, and show the findings as an artifact.

    Args:
        cluster: its name.

    Raises:
        SlurmRayFlowError: something is as it must not be; the artifact says what to do.
    """
    with reported_once():
        findings = findings_of(find_cluster(cluster))
        table = [dataclasses.asdict(finding) for finding in findings]
        failed = [finding for finding in findings if finding.state == "failed"]
        create_table_artifact(
            table=table, key=artifact_key("check", short_name(cluster)), description=f"{cluster}: {len(failed)} failed"
        )
        if failed:
            what = "; ".join(f"{finding.name}: {finding.found}" for finding in failed)
            raise SlurmRayFlowError(what, where=cluster, advice=failed[0].advice)
        return findings
