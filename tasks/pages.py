"""Where things are in Prefect's UI."""

from __future__ import annotations

from prefect.settings import get_current_settings

from slurm_ray_flow.blocks.server.client import ui_url_of


def run_page(flow_run_id: str) -> str:
    """The page of a flow run; "" where Prefect has no server that others can reach."""
    settings = get_current_settings()
    url = settings.ui_url or (ui_url_of(settings.api.url) if settings.api.url else "")
    return f"{url}/runs/flow-run/{flow_run_id}" if url else ""
