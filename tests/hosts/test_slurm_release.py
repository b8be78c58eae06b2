"""Warm clusters on Slurm: shown with their cost, released, and joined only by calls that they have time for."""

import json

import pytest

from slurm_ray_flow import Cancelled, RunState
from slurm_ray_flow.interface.session import Launching
from support import Noting, wait_for

pytestmark = pytest.mark.server

WARM = {"keep_warm": "5m", "cpus_per_node": 1}


@pytest.mark.ray
def test_a_warm_cluster_of_two_nodes_is_shown_and_released(jobs):
    import held

    folder = jobs.folder()
    call = jobs.on(held.note, **WARM, nodes=2, ray="always")
    assert [call(folder, word) for word in ("one", "two")] == ["<one>", "<two>"]
    [job] = jobs.named("note")
    said, _ = jobs.srf("runs", "--json").communicate(timeout=180)
    [warm] = [run for run in json.loads(said) if run["state"] == "warm"]
    assert warm["warm"]["core_hours_an_hour"] == 2
    said, _ = jobs.srf("release", warm["run_id"]).communicate(timeout=180)
    assert said.startswith(f"released run {warm['run_id'][:8]} (")
    wait_for(lambda: jobs.slurm.state(job["JobId"]) == "COMPLETED")
    jobs.over()


def test_a_call_that_needs_longer_than_is_left_gets_a_job_of_its_own(jobs):
    import held

    folder = jobs.folder()
    assert jobs.on(held.note, **WARM, time_limit="2m")(folder, "one") == "<one>"
    [first] = jobs.named("note")
    assert first["TimeLimit"] == "00:07:00"
    assert jobs.on(held.note, **WARM, time_limit="5m")(folder, "longer, and fits") == "<longer, and fits>"
    assert len(jobs.named("note")) == 1
    shown = Noting()
    assert jobs.on(held.note, **WARM, time_limit="8m").call(Launching(shown), (folder, "two"), {}) == "<two>"
    assert any("not joined: its job ends in 6 min" in text for text in shown.said), shown.said
    assert jobs.on(held.note, **WARM, time_limit="2m")(folder, "three") == "<three>"
    assert len(jobs.named("note")) == 2
    said, _ = jobs.srf("release", jobs.name).communicate(timeout=180)
    assert said.count("released run") == 2
    jobs.over()


def test_one_that_has_a_call_is_released_by_force_alone(jobs):
    import held

    assert jobs.on(held.note, **WARM)(jobs.folder(), "one") == "<one>"
    [job] = jobs.named("note")
    run = jobs.begun(held.wait, **WARM)
    assert run.handle.status() is RunState.RUNNING
    left = jobs.srf("release", jobs.name)
    assert "alone" in left.communicate(timeout=180)[0]
    assert left.returncode == 1
    said, _ = jobs.srf("release", jobs.name, "--force").communicate(timeout=180)
    assert said.startswith("released run")
    with pytest.raises(Cancelled):
        run.handle.result(180)
    wait_for(lambda: jobs.slurm.state(job["JobId"]) == "COMPLETED")
    assert len(jobs.named("wait")) == 0
    jobs.over()
