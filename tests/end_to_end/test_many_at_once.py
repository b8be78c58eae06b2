"""Many launches at once ask Prefect's server at once."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files

pytestmark = pytest.mark.server

STATE = {"type": "RUNNING", "name": "Running", "state_details": {}}


def test_the_server_takes_as_many_requests_as_there_are(server):
    """More writers than its database had connections waited for each other until they failed."""
    api = Api(server.url, auth_string(server_files()))
    flow = api.post("/flows/", {"name": f"many-{time.monotonic_ns()}"})

    def run(number):
        made = api.post("/flow_runs/", {"flow_id": flow["id"], "name": str(number), "state": STATE})
        return api.post(f"/flow_runs/{made['id']}/set_state", {"state": {"type": "COMPLETED", "name": "Completed"}})

    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(run, range(60)))
    assert {answer["status"] for answer in answers} == {"ACCEPT"}
