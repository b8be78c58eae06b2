"""The flow that ends runs whose process was killed. This package's own server sweeps by itself."""

from __future__ import annotations

import itertools

from prefect import flow, get_run_logger

from slurm_ray_flow.blocks.server.client import needed_api
from slurm_ray_flow.blocks.server.sweep import Clusters, watch_once
from slurm_ray_flow.blocks.server.sweep import sweep as sweep_runs
from slurm_ray_flow.tasks.page import reported_once


@flow(name="sweep", flow_run_name="sweep")
def sweep() -> list[str]:
    """Sweep all active runs that were launched from this machine, once.

    Returns:
        A line for each run that was ended or asked to end.

    Raises:
        ServerError: Prefect's API can't be reached.
    """
    with reported_once():
        lines, api = [], needed_api()
        for line in itertools.chain(sweep_runs(api), watch_once(api, Clusters())):
            get_run_logger().info(line)
            lines.append(line)
        return lines
