"""The flow that ends runs whose process was killed. This package's own server sweeps by itself."""

from __future__ import annotations

import itertools

from prefect import flow, get_run_logger
from prefect.settings import get_current_settings

from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.sweep import Clusters, look
from slurm_ray_flow.blocks.server.sweep import sweep as sweep_runs
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.tasks.end_report import reported_once


@flow(name="sweep", flow_run_name="sweep")
def sweep() -> list[str]:
    """Sweep all active runs that were launched from this machine, once.

    Returns:
        A line for each run that was ended or asked to end.

    Raises:
        ServerError: no API is configured, or it can't be reached.
    """
    with reported_once():
        settings = get_current_settings().api
        if settings.url is None:
            raise ServerError(
                "No Prefect API is configured for the sweep.", advice="Set PREFECT_API_URL, or use `srf up`."
            )
        lines = []
        api = Api(settings.url.rstrip("/"), settings.auth_string.get_secret_value() if settings.auth_string else "")
        for line in itertools.chain(sweep_runs(api), look(api, Clusters())):
            get_run_logger().info(line)
            lines.append(line)
        return lines
