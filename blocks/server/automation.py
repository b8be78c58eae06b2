"""The automation on the server that ends runs without a heartbeat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.core.sweep import TAG

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


NAME = "slurm-ray-flow: end runs without heartbeat"
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE = 90
"""Seconds without a heartbeat after which a run counts as crashed; launches and the sweep send one every 30."""

MESSAGE = f"lost: no heartbeat for {SILENCE} s; the process that launched the run is gone."
"""The message of the state that the automation sets."""

_FINAL = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]


def definition() -> dict[str, Any]:
    """The automation as the API takes it."""
    return {
        "name": NAME,
        "description": "A killed process says nothing; this ends what it left as running.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"},
            "after": [HEARTBEAT, "prefect.flow-run.Running"],
            "expect": [HEARTBEAT, *_FINAL],
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": SILENCE,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": MESSAGE,
            }
        ],
    }


def ensure_automation(api: Api) -> None:
    """Create the automation on the server, once.

    Raises:
        ServerError: the server can't be reached or refuses it.
    """
    existing = api.post("/automations/filter", {"automations": {"name": {"any_": [NAME]}}})
    if not existing:
        api.post("/automations/", definition())


def emit_heartbeat(flow_run: FlowRun | None = None) -> None:
    """Send one heartbeat of a flow run in the background.

    The server's automation ends a run without a heartbeat for 90 s, so call this at least every 30 s.

    Args:
        flow_run: the flow run; None takes the flow run of this context, and does nothing outside of one.
    """
    from prefect.context import FlowRunContext
    from prefect.events import emit_event

    context = FlowRunContext.get()
    run = flow_run or (context.flow_run if context else None)
    if run is None:
        return
    tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in sorted(run.tags)]
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}", "prefect.resource.name": run.name or ""}
    emit_event(event=HEARTBEAT, resource=resource, related=list(tags))
