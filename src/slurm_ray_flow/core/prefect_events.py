"""Events that this package sends to Prefect, for automations (docs/prefect.md). Pure functions."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from slurm_ray_flow.core.artifacts import short_name
from slurm_ray_flow.core.quantities import format_duration
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.core.warm import Warm

CLUSTER_DOWN = "slurm-ray-flow.cluster.down"
CLUSTER_UP = "slurm-ray-flow.cluster.up"
RUN_FAILED = "slurm-ray-flow.run.failed"
WARM_IDLE = "slurm-ray-flow.warm.idle"
GRID = "slurm-ray-flow.grid."
CAMPAIGN_BEGAN, CAMPAIGN_PAUSED, CAMPAIGN_ENDED = GRID + "began", GRID + "paused", GRID + "ended"
CLUSTER_QUARANTINED, CLUSTER_SILENT, CLUSTER_BACK = GRID + "quarantined", GRID + "unreachable", GRID + "back"
CLUSTER_DRAINED = GRID + "drained"
PILOT_FAILED, ITEMS_FAILED, ITEMS_TWICE = GRID + "pilot_failed", GRID + "items_failed", GRID + "duplicate"
OF_THE_GRID = (
    CAMPAIGN_BEGAN,
    CAMPAIGN_PAUSED,
    CAMPAIGN_ENDED,
    CLUSTER_QUARANTINED,
    CLUSTER_DRAINED,
    CLUSTER_SILENT,
    CLUSTER_BACK,
    PILOT_FAILED,
    ITEMS_FAILED,
    ITEMS_TWICE,
)

Resource = dict[str, str]


@dataclass(frozen=True)
class PrefectEvent:
    """An event for Prefect.

    Attributes:
        event: its name, one of those above.
        resource: what it is about.
        payload: what is known of it, for templates: `{{ event.payload.cause }}`.
        related: what it has to do with.
    """

    event: str
    resource: Resource
    payload: dict[str, Any]
    related: list[Resource] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        """The event as Prefect's API takes it."""
        now = datetime.now(timezone.utc).isoformat()
        known = {"event": self.event, "resource": self.resource, "payload": self.payload, "related": self.related}
        return {"id": str(uuid.uuid4()), "occurred": now, **known}


def cluster_down(cluster: str, why: str, advice: str = "") -> PrefectEvent:
    """The event for a cluster that has become unreachable or unusable."""
    name = short_name(cluster)
    return PrefectEvent(CLUSTER_DOWN, _cluster(name), {"cluster": name, "why": why, "advice": advice})


def cluster_up(cluster: str, seconds: float) -> PrefectEvent:
    """The event for a cluster that can be used again after `seconds`."""
    name = short_name(cluster)
    return PrefectEvent(CLUSTER_UP, _cluster(name), {"cluster": name, "down_seconds": round(seconds)})


def run_failed(record: RunRecord, cause: str, message: str) -> PrefectEvent:
    """The event for a run that ended without a value; `cause` is a word of docs/errors.md."""
    name = f"{record.function} on {short_name(record.cluster)}"
    payload = {
        "run_id": record.run_id,
        "function": record.function,
        "cluster": short_name(record.cluster),
        "cause": cause,
        "message": message,
        "log": str(record.paths.log),
    }
    related = [
        {**_cluster(short_name(record.cluster)), "prefect.resource.role": "cluster"},
        {"prefect.resource.id": f"prefect.flow-run.{record.flow_run_id}", "prefect.resource.role": "flow-run"},
    ]
    resource = {
        "prefect.resource.id": f"slurm-ray-flow.run.{record.run_id}",
        "prefect.resource.name": name,
        "slurm-ray-flow.cause": cause,
    }
    return PrefectEvent(RUN_FAILED, resource, payload, related)


def warm_idle(allocation: Warm, cluster: str) -> PrefectEvent:
    """The event for a warm cluster that idles."""
    name, cost = short_name(cluster), allocation.cost
    resource = {
        "prefect.resource.id": f"slurm-ray-flow.warm.{allocation.allocation}",
        "prefect.resource.name": f"run {allocation.run_id[:8]} on {name}",
    }
    payload = {
        "run_id": allocation.run_id,
        "cluster": name,
        "idle": format_duration(cost.seconds),
        "costs": cost.an_hour,
        "core_hours_an_hour": cost.cpus,
        "gpu_hours_an_hour": cost.gpus,
        "release": f"srf release {allocation.run_id[:8]}",
        **cost.to_json(),
    }
    return PrefectEvent(WARM_IDLE, resource, payload, [{**_cluster(name), "prefect.resource.role": "cluster"}])


def grid_event(
    event: str, campaign: str, name: str, message: str, cluster: str = "", level: str = "info"
) -> PrefectEvent:
    """An event of a campaign.

    Args:
        event: one of `OF_THE_GRID`.
        campaign, name: the campaign's id, and its name for people.
        message: what happened, in a line.
        cluster: where; "" for the campaign as a whole.
        level: "info", "warning" or "error".
    """
    short = short_name(cluster) if cluster else ""
    resource = {
        "prefect.resource.id": f"slurm-ray-flow.campaign.{campaign}",
        "prefect.resource.name": f"campaign {name}",
        "slurm-ray-flow.level": level,
    }
    payload = {"campaign": campaign, "name": name, "cluster": short, "level": level, "message": message}
    related = [{**_cluster(short), "prefect.resource.role": "cluster"}] if short else []
    return PrefectEvent(event, resource, payload, related)


def _cluster(name: str) -> Resource:
    return {"prefect.resource.id": f"slurm-ray-flow.cluster.{name}", "prefect.resource.name": name}
