"""`srf dashboard`: Ray's own page of a run, in the browser of this machine."""

from __future__ import annotations

import json as json_text
import sys
import time
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

from slurm_ray_flow.cli.names import A_RUN
from slurm_ray_flow.cli.output import Json, print_json, print_text
from slurm_ray_flow.core.errors import OptionError, RunError

if TYPE_CHECKING:
    from slurm_ray_flow.blocks.cluster import Cluster
    from slurm_ray_flow.core.run import RunPaths

LOOK_SECONDS = 5.0
"""Seconds between two questions whether the Ray cluster is still there."""


def dashboard(run: Annotated[str, A_RUN], *, port: int = 0, json: Json = False) -> None:
    """Lead to the Ray dashboard of a run that has dashboard=True.

    It is there until Ctrl-C, or the run's end. Only this machine can reach it, and only who has the URL that is
    printed.

    Args:
        run: The run's id, or the start of it.
        port: Where to listen; by default any that is free.

    Examples:
        srf dashboard 3f2a
    """
    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.blocks.clusters import cluster_of
    from slurm_ray_flow.blocks.tunnel import Tunnel
    from slurm_ray_flow.core.run import RunPaths

    record = store.find_record(run)
    cluster = cluster_of(record)
    paths = RunPaths(PurePosixPath(record.root), record.allocation)
    page = _read_page(paths, cluster) or _raise_reason(paths, cluster)
    host, _, far_port = page["address"].rpartition(":")
    try:
        tunnel = Tunnel(cluster.reach, host, int(far_port), page["token"], port)
    except OSError as error:
        raise OptionError(f"port {port} can't be listened on: {error.strerror}", advice="leave --port out") from None
    if json:
        print_json({"run_id": record.run_id, "url": tunnel.url})
    else:
        print_text(f"{tunnel.url}\nOpen it in a browser. Ctrl-C ends it.")
    sys.stdout.flush()
    try:
        _wait_for_end(paths, cluster)
    finally:
        tunnel.close()


def _read_page(paths: RunPaths, cluster: Cluster) -> dict[str, Any] | None:
    data = cluster.read(paths.dashboard)
    return json_text.loads(data) if data else None


def _raise_reason(paths: RunPaths, cluster: Cluster) -> dict[str, Any]:
    """Raise the reason that there is no dashboard."""
    from slurm_ray_flow.blocks.cluster import recorded
    from slurm_ray_flow.core.run import find_event

    where = f"{cluster.label}, run {paths.run_id[:8]}"
    spec = cluster.read(paths.spec)
    if spec and not json_text.loads(spec).get("dashboard"):
        advice = "start it with dashboard=True; by default Ray runs without, since it starts faster so"
        raise RunError("the run has no dashboard", where=where, advice=advice)
    if find_event(recorded(cluster, paths.events), "released"):
        raise RunError("the run's Ray cluster has ended, and its dashboard with it", where=where)
    raise RunError(
        "the run's Ray cluster is not ready yet", where=where, advice="try again when `srf runs` shows running"
    )


def _wait_for_end(paths: RunPaths, cluster: Cluster) -> None:
    while True:
        time.sleep(LOOK_SECONDS)
        if _read_page(paths, cluster) is None:
            print_text("The run's Ray cluster has ended.")
            return
