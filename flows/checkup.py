"""The flow that checks all clusters: their state, their holders, their idle allocations. A change is an event."""

from __future__ import annotations

import time

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from slurm_ray_flow.blocks.clusters import saved_clusters
from slurm_ray_flow.core.cluster_report import ClusterReport
from slurm_ray_flow.core.errors import ConnectionFailed
from slurm_ray_flow.core.lock import clock
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.tasks.check_up import check_up
from slurm_ray_flow.tasks.page import reported_once


@flow(name="checkup", flow_run_name="checkup of {cluster}")
def checkup(cluster: str = "all", idle_minutes: float = 10.0) -> list[ClusterReport]:
    """Check one cluster, or this machine and all saved clusters, and show them in a table.

    Args:
        cluster: the cluster's name, or "all".
        idle_minutes: the idle time after which a Ray cluster that `keep_warm` holds is reported.

    Raises:
        ConnectionFailed: the one cluster that was named can't be used.
        ServerError: Prefect's API can't be reached.
    """
    with reported_once():
        all_clusters = cluster in {"", "all"}
        names = ["local", *(saved.slug for saved in saved_clusters())] if all_clusters else [cluster]
        check_ups = [check_up(name, idle_minutes) for name in names]
        for down in (report for report in check_ups if report.down):
            get_run_logger().warning("%s can't be used: %s", down.cluster, down.why)
        _show(check_ups)
        if not all_clusters and check_ups[0].down:
            advice = check_ups[0].advice or f"srf check {cluster} says more"
            raise ConnectionFailed(check_ups[0].why, where=cluster, advice=advice)
        return check_ups


def _show(check_ups: list[ClusterReport]) -> None:
    now = time.time()
    down = [report.cluster for report in check_ups if report.down]
    number = "1 cluster" if len(check_ups) == 1 else f"{len(check_ups)} clusters"
    text = f"{number}: {', '.join(down)} down" if down else f"{number}, none is down"
    create_table_artifact(table=[_row(report, now) for report in check_ups], key="checkup", description=text)


def _row(report: ClusterReport, now: float) -> dict[str, str]:
    next_question = report.health.again
    holders = ", ".join(holder.user for holder in report.lock.holders) if report.lock else ""
    idle = ", ".join(f"run {one.run_id[:8]} for {format_duration(one.cost.seconds)}" for one in report.idle or ())
    return {
        "cluster": report.cluster,
        "state": "down" if report.down else "up",
        "since": clock(report.health.since, now) if report.health.since else "",
        "held by": holders,
        "idles": idle,
        "why": report.why + (f" (not asked again before {clock(next_question, now)})" if next_question else ""),
    }
