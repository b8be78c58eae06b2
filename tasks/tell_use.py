"""What a run used of what it asked for: in the terminal, and in Prefect."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from slurm_ray_flow.blocks.cluster import Cluster
from slurm_ray_flow.core.artifact import artifact_key, short_name
from slurm_ray_flow.core.efficiency import killed_text, report
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.outcome import Ended
from slurm_ray_flow.core.progress import reporter


def tell_use(ended: Ended, cluster: Cluster, options: Options) -> None:
    """Say it, if there is something to say. Nothing that goes wrong here may cost the value."""
    if warning := killed_text(ended.usage):
        reporter().warn(warning)
        if flow_run.get_id():
            get_run_logger().warning(warning)
    found = report(ended.usage, options)
    if found is None:
        return
    reporter().say(found.line)
    if not flow_run.get_id():
        return
    try:
        get_run_logger().info(found.line)
        key = artifact_key("use", short_name(cluster.label))
        create_markdown_artifact(markdown=found.markdown(), key=key, description=found.line)
    except Exception as error:
        get_run_logger().debug("no artifact: %s", error)
