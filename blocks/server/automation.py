"""The server's own rule that ends runs of ours that nobody has heard of."""

from __future__ import annotations

from typing import Any

from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.core.sweep import TAG

NAME = "slurm-ray-flow: end runs without heartbeat"
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE = 90
"""Seconds without a heartbeat after which a run counts as crashed; launches and the sweep beat every 30."""

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
                "message": f"lost: no heartbeat for {SILENCE} s; the process that launched the run is gone.",
            }
        ],
    }


def ensure_automation(api: Api) -> None:
    """Puts the automation on the server, once.

    Raises:
        ServerError: the server can't be reached or refuses it.
    """
    found = api.post("/automations/filter", {"automations": {"name": {"any_": [NAME]}}})
    if not found:
        api.post("/automations/", definition())
