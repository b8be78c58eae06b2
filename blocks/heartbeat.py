"""Tells Prefect that a run lives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slurm_ray_flow.blocks.server.automation import HEARTBEAT

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def emit_heartbeat(flow_run: FlowRun | None = None) -> None:
    """Puts one heartbeat of a flow run on its way and returns at once; Prefect sends it in the background.

    The server's automation counts a run as crashed that is silent for 90 s, so do this at least every 30 s.

    Args:
        flow_run: the run that lives; None means the one that this code runs in. Outside of one nothing happens.
    """
    from prefect.context import FlowRunContext
    from prefect.events import emit_event

    context = FlowRunContext.get()
    alive = flow_run or (context.flow_run if context else None)
    if alive is None:
        return
    tags = [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"} for tag in sorted(alive.tags)]
    resource = {"prefect.resource.id": f"prefect.flow-run.{alive.id}", "prefect.resource.name": alive.name or ""}
    emit_event(event=HEARTBEAT, resource=resource, related=list(tags))
