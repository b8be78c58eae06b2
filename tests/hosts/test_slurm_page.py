"""What Prefect shows of a run that waits in Slurm's queue."""

import pytest

from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from support import BOUND, wait_for


@pytest.fixture
def api(server):
    return Api(server.url, auth_string(server_files()))


def artifacts(api, run_id):
    found = api.post("/artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    keyed = [one for one in found if one["key"]]
    assert len({one["key"] for one in keyed}) == len(keyed), "each changes in place"
    return {one["key"].partition("-")[0]: one for one in keyed}


def test_its_wait_is_one_artifact_and_lines_of_the_log_and_then_its_job_is_shown(jobs, api):
    import held

    with jobs.full():
        run = jobs.waiting(held.wait, nodes=2)
        wait_for(lambda: "waiting" in artifacts(api, run.id))
        assert "until now" in artifacts(api, run.id)["waiting"]["description"]
    wait_for(lambda: jobs.starts(run.folder))
    wait_for(lambda: f"| job | `{run.job['JobId']}` |" in artifacts(api, run.id)["run"]["data"])
    run.go()
    run.handle.result(BOUND)
    wait_for(lambda: artifacts(api, run.id)["waiting"]["description"].startswith("waited "))
    flow_run = api.get(f"/flow_runs/{run.id}")
    assert flow_run["name"].endswith(f"on {jobs.name}, 2 nodes")
    assert {jobs.name, "slurm-cluster", "wait"} <= set(flow_run["tags"])
    told = api.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run.id]}}, "limit": 200})
    waits = [line for line in told if line["message"].startswith("waits")]
    assert waits and {line["level"] for line in waits} == {20}
    jobs.over()
