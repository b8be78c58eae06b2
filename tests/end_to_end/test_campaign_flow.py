"""Campaigns as flow runs of a real Prefect server: progress, artifacts, children, and what a person does there."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from slurm_ray_flow import CampaignState, slurm_ray_flow
from slurm_ray_flow.blocks.grid_engine import ensure_engine, read_engine_state
from slurm_ray_flow.blocks.processes import alive
from slurm_ray_flow.blocks.server import automation, connected, ensure_server
from slurm_ray_flow.blocks.server.sweep import sweep
from slurm_ray_flow.core.errors import SlurmRayFlowError
from slurm_ray_flow.core.grid.campaign_page import OURS
from slurm_ray_flow.flows.campaign import campaign as campaign_flow
from slurm_ray_flow.grid.client import GridClient
from srf_command import Command
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine")]


@pytest.fixture
def halve(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def halve(number):
        if number % 2:
            raise ValueError(f"{number} is odd")
        return number // 2

    return halve


@pytest.fixture
def patient(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def patient(number, folder):
        Path(folder, f"begun.{number}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.05)
        return number

    return patient


def flow_run_of(api, campaign):
    """The flow run of a campaign, as soon as there is one."""
    wait_for(lambda: campaign.status().flow_run_id)
    return api.get(f"/flow_runs/{campaign.status().flow_run_id}")


def type_of(api, flow_run):
    return api.get(f"/flow_runs/{flow_run['id']}")["state_type"]


def artifacts_of(api, flow_run):
    query = {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}}}
    found = api.post("/artifacts/filter", query)
    return {artifact["type"]: artifact for artifact in found}, len(found)


def set_state(api, flow_run, state):
    return api.post(f"/flow_runs/{flow_run['id']}/set_state", {"state": {"type": state}})


def begin(patient, folder, count=20):
    campaign = patient.campaign(range(count), same={"folder": str(folder)})
    wait_for(lambda: list(folder.glob("begun.*")))
    return campaign


def test_a_campaign_is_one_flow_run_with_its_pilots_below_it(halve, api):
    campaign = halve.campaign(range(10), name="halves")
    assert campaign.wait(180).state is CampaignState.FAILED
    flow_run = flow_run_of(api, campaign)
    wait_for(lambda: type_of(api, flow_run) == "FAILED")
    flow_run = flow_run_of(api, campaign)
    assert flow_run["name"] == "campaign of halves"
    assert f"campaign:{campaign.id[:8]}" in flow_run["tags"] and "halve" in flow_run["tags"]
    assert "5 of 10 items failed" in flow_run["state"]["message"]

    wait_for(lambda: all(pilot["state"] == "ended" for pilot in GridClient().pilots(campaign.id)))
    [pilot] = GridClient().pilots(campaign.id)
    children = {"flow_runs": {"parent_flow_run_id": {"any_": [flow_run["id"]]}}}
    assert [child["id"] for child in api.post("/flow_runs/filter", children)] == [pilot["run_id"]]
    tasks = {"task_runs": {"flow_run_id": {"any_": [flow_run["id"]]}}}
    wait_for(lambda: [task["state_type"] for task in api.post("/task_runs/filter", tasks)] == ["COMPLETED"])

    wait_for(lambda: "| ended |" in artifacts_of(api, flow_run)[0]["markdown"]["data"])
    artifacts, count = artifacts_of(api, flow_run)
    assert count == 2 and artifacts["progress"]["data"] == 100.0
    text = artifacts["markdown"]["data"]
    assert "5 succeeded, 5 failed" in text and "core-" in text and "items a" in text
    assert "| 5 | " in text.partition("### Failures by cause")[2] and "is odd" in text
    assert f"/runs/flow-run/{pilot['run_id']}" in text.partition("### Pilots")[2]


def test_progress_moves_while_it_runs(patient, api, tmp_path):
    campaign = begin(patient, tmp_path)
    flow_run = flow_run_of(api, campaign)
    assert type_of(api, flow_run) == "RUNNING"
    wait_for(lambda: "progress" in artifacts_of(api, flow_run)[0])
    assert artifacts_of(api, flow_run)[0]["progress"]["data"] == 0
    (tmp_path / "go").touch()
    wait_for(lambda: artifacts_of(api, flow_run)[0]["progress"]["data"] == 100)
    wait_for(lambda: type_of(api, flow_run) == "COMPLETED")
    said = Command()("grid", "stat", campaign.id)
    assert f"/runs/flow-run/{flow_run['id']}" in said.stdout, said.stdout + said.stderr


@pytest.mark.parametrize("state", ["CANCELLING", "CANCELLED"])
def test_a_person_cancels_it_in_prefect(patient, api, tmp_path, state):
    campaign = begin(patient, tmp_path, 500)
    flow_run = flow_run_of(api, campaign)
    set_state(api, flow_run, state)
    assert campaign.wait(120).state is CampaignState.CANCELLED
    assert "Prefect" in campaign.status().reason

    def is_over():
        shown = api.get(f"/flow_runs/{flow_run['id']}")
        return shown["state_type"] == "CANCELLED" and shown["state"]["message"].startswith(OURS)

    wait_for(is_over)
    assert all(pilot["state"] == "ended" for pilot in GridClient().pilots(campaign.id))
    assert campaign.status().cancelled == 500 and len(list(tmp_path.glob("begun.*"))) <= 4
    (tmp_path / "go").touch()
    assert campaign.resubmit() == 500
    assert campaign.wait(180).succeeded == 500, "what was cancelled once is not cancelled again"
    wait_for(lambda: type_of(api, flow_run) == "COMPLETED")


def test_a_person_resumes_it_in_prefect(patient, api, tmp_path):
    campaign = begin(patient, tmp_path)
    flow_run = flow_run_of(api, campaign)
    campaign.pause()
    wait_for(lambda: type_of(api, flow_run) == "PAUSED")
    (tmp_path / "go").touch()
    api.post(f"/flow_runs/{flow_run['id']}/resume", {})
    assert list(campaign.results(timeout=240)) == list(range(20))
    wait_for(lambda: type_of(api, flow_run) == "COMPLETED")


def test_the_sweep_leaves_it_alone_also_while_the_engine_is_away(patient, api, tmp_path):
    campaign = begin(patient, tmp_path)
    flow_run = flow_run_of(api, campaign)
    list(sweep(api))
    assert type_of(api, flow_run) == "RUNNING"
    process = read_engine_state().process
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not alive(process))
    list(sweep(api))
    assert type_of(api, flow_run) == "RUNNING"
    watched = automation.definition()["trigger"]["match_related"]["prefect.resource.id"]
    assert watched not in {f"prefect.tag.{tag}" for tag in flow_run["tags"]}, "no heartbeat is expected of it"
    (tmp_path / "go").touch()
    ensure_engine()
    assert campaign.wait(180).succeeded == 20
    wait_for(lambda: type_of(api, flow_run) == "COMPLETED")
    assert campaign.status().flow_run_id == flow_run["id"], "the next engine goes on with the same flow run"


SEEDS = """
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow


@slurm_ray_flow(ray="never", cpus_per_node=2)
def seeds(seed: int) -> int:
    with (Path(__file__).parent / "runs").open("a") as file:
        file.write(f"{seed}\\n")
    if seed == 13:
        raise ValueError("bad luck")
    return seed * 10
"""


def test_the_deployed_campaign_runs_in_pilots_what_is_new(server, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    ran = tmp_path / "ran"
    source = SEEDS.replace('(Path(__file__).parent / "runs")', f"Path({str(ran)!r})")
    (tmp_path / "seedsmodule.py").write_text(source)
    chosen = {"function": "seedsmodule:seeds", "directory": str(tmp_path), "pilots": True, "key": "seed"}
    with connected(ensure_server(print)):
        assert campaign_flow(values=[1, 2, "3"], **chosen) == [10, 20, 30]
        with pytest.raises(SlurmRayFlowError, match="3 of 4 done, 1 failed"):
            campaign_flow(values=[3, 13, 4, 1], **chosen)
        assert campaign_flow(values=[4, 3, 2, 1], **chosen) == [40, 30, 20, 10], "nothing is new"
        with pytest.raises(SlurmRayFlowError, match="1 failed"):
            campaign_flow(values=[13], **chosen)
    assert sorted(map(int, ran.read_text().split())) == [1, 2, 3, 4, 13, 13], "what failed runs again, nothing else"
