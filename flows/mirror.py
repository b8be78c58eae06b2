"""The flow that shows the holders of shared servers in Prefect, also those from outside this Prefect."""

from __future__ import annotations

from prefect import flow, get_run_logger

from slurm_ray_flow.blocks.clusters import saved_clusters
from slurm_ray_flow.blocks.ssh_server import SshServer
from slurm_ray_flow.core.cluster_report import ClusterReport
from slurm_ray_flow.tasks.check_up import mirror_lock
from slurm_ray_flow.tasks.page import reported_once


@flow(name="mirror", flow_run_name="mirror of {cluster}")
def mirror(cluster: str = "all") -> list[ClusterReport]:
    """Mirror the lock of one server, or of all saved servers, in Prefect's limit for it and in an artifact.

    Args:
        cluster: the server's name, or "all".

    Raises:
        ServerError: Prefect's API can't be reached.
    """
    with reported_once():
        all_servers = cluster in {"", "all"}
        names = [saved.slug for saved in saved_clusters() if saved.kind == SshServer.kind] if all_servers else [cluster]
        check_ups = [report for name in names if (report := mirror_lock(name)) is not None]
        for down in (report for report in check_ups if report.down):
            get_run_logger().warning("%s gave no answer: %s", down.cluster, down.why)
        return check_ups
