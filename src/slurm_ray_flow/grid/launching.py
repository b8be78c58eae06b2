"""The launch of a pilot from the engine's process."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from slurm_ray_flow.blocks.clusters import find_cluster, remember
from slurm_ray_flow.blocks.server import connected, ensure_server
from slurm_ray_flow.blocks.server.client import needed_api
from slurm_ray_flow.core.errors import ServerError
from slurm_ray_flow.core.grid.campaign_page import PilotSize, tag_of
from slurm_ray_flow.core.grid.model import Campaign
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.flows.pilot import Prepared, call_of_pilot, run_pilot
from slurm_ray_flow.grid.campaign_flow import flow_run_of
from slurm_ray_flow.grid.campaign_folder import CampaignFolder

PILOT_OPTIONS = (
    "nodes", "cpus_per_node", "gpus_per_node", "memory", "time_limit", "partition", "account", "qos", "constraint",
    "warn_before", "environment", "container", "env_vars", "name", "ray", "keep",
)  # fmt: skip
"""The options of a function that count for a pilot after its cluster is prepared."""
log = logging.getLogger("slurm_ray_flow.grid")


def launch_as_json(options: Options, prepared: Prepared, settings: dict[str, Any]) -> dict[str, Any]:
    """What the launch of a pilot needs, for `CampaignFolder.write`."""
    fields = {name: getattr(options, name) for name in PILOT_OPTIONS}
    return {"format": 1, "options": fields, "prepared": prepared.to_json(), "pilot": settings}


def launch_pilot(campaign: Campaign, cluster_name: str, note_run_id: Callable[[str], None]) -> None:
    """Launch a pilot, and return when it has ended.

    Raises:
        SlurmRayFlowError: it did not get to an end.
    """
    launch = CampaignFolder(campaign.id).launch_of(cluster_name)
    address = ensure_server(lambda text: log.info("%s", text))
    with connected(address):
        cluster = find_cluster(cluster_name)
        remember(cluster)
        options = Options(**_from_json(launch["options"]), cluster=cluster_name)
        prepared = Prepared.from_json(launch["prepared"])
        label = campaign.function
        call = call_of_pilot(campaign.function_digest, campaign.arguments_digest, label, launch["pilot"])
        parent = ""
        with contextlib.suppress(ServerError):  # a server that does not answer is told by the launch itself
            parent = flow_run_of(needed_api(), campaign)
        tags = [tag_of(campaign)]
        outcome = run_pilot(call, cluster, options, prepared, note_run_id, more_tags=tags, parent=parent)
        log.info("pilot of %s on %s: %s", label, cluster_name, outcome.exception or outcome.value)


def workers_of(campaign_id: str, cluster_name: str) -> int:
    """How many items a pilot of a campaign runs at a time."""
    settings = CampaignFolder(campaign_id).launch_of(cluster_name)["pilot"]
    return int(settings["workers"])


def cores_of(campaign_id: str, cluster_name: str) -> int:
    """How many cores a pilot of a campaign has."""
    settings = CampaignFolder(campaign_id).launch_of(cluster_name)["pilot"]
    return int(settings["workers"]) * int(settings.get("threads") or 1)


def size_of(campaign_id: str, cluster_name: str) -> PilotSize:
    """What a pilot of a campaign has on a cluster."""
    options = CampaignFolder(campaign_id).launch_of(cluster_name)["options"]
    gpus = int(options["gpus_per_node"] or 0) * int(options["nodes"] or 1)
    return PilotSize(cores_of(campaign_id, cluster_name), gpus)


def cap_of_kind(cluster_name: str) -> int | None:
    """How many pilots there may be at a time on a cluster: one on a machine, whose cores a single pilot keeps busy.

    Raises:
        SlurmRayFlowError: the cluster is not saved any more, or Prefect's server does not answer.
    """
    return 1 if find_cluster(cluster_name, to_look=True).scheduler is None else None


def _from_json(options: dict[str, Any]) -> dict[str, Any]:
    """The options as the decorator has them: JSON knows no tuples."""
    pairs = tuple((str(name), str(value)) for name, value in options["env_vars"])
    environment = options["environment"]
    return {
        **options,
        "env_vars": pairs,
        "environment": tuple(environment) if isinstance(environment, list) else environment,
    }
