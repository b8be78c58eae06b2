"""The name and the message of a flow run's state in Prefect."""

from __future__ import annotations

from typing import Any

from slurm_ray_flow.blocks.server.api import Api


def name_state(api: Api, flow_run_id: str, name: str, message: str) -> bool:
    """Give the state of a running flow run another name; False where Prefect refuses, since it is being cancelled.

    Raises:
        ServerError: Prefect does not answer.
    """
    state = {"type": "RUNNING", "name": name, "message": message}
    answer = api.post(f"/flow_runs/{flow_run_id}/set_state", {"state": state, "force": False})
    return bool(answer["status"] == "ACCEPT")


def read_state(api: Api, flow_run_id: str) -> str:
    """The type of a flow run's state.

    Raises:
        ServerError: Prefect does not answer.
    """
    return str(api.get(f"/flow_runs/{flow_run_id}")["state_type"])


def runs_in_state(api: Api, name: str) -> list[str]:
    """The flow runs whose state has this name, in the order in which they were launched.

    Raises:
        ServerError: Prefect does not answer.
    """
    return [run["id"] for run in flow_runs_in_state(api, name)]


def flow_runs_in_state(api: Api, name: str) -> list[dict[str, Any]]:
    """The flow runs whose state has this name, with all their fields.

    Raises:
        ServerError: Prefect does not answer.
    """
    query = {"flow_runs": {"state": {"name": {"any_": [name]}}}, "sort": "START_TIME_ASC", "limit": 200}
    flow_runs: list[dict[str, Any]] = api.post("/flow_runs/filter", query)
    return sorted(flow_runs, key=lambda run: (run["start_time"] or "", run["id"]))
