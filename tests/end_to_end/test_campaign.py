"""Campaigns through a real engine, real pilots and a real Prefect server, on this machine."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from onlookers import listening
from slurm_ray_flow import (
    Campaign,
    CampaignState,
    Crashed,
    GridError,
    OptionError,
    PayloadError,
    RunError,
    TimeLimit,
    __version__,
    slurm_ray_flow,
)
from slurm_ray_flow.blocks.grid_engine import EngineFiles, end_engine, ensure_engine, read_engine_state
from slurm_ray_flow.blocks.processes import alive
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.grid.store import Store, default_url
from slurm_ray_flow.interface.campaign_start import IDLE_SECONDS
from slurm_ray_flow.remote.driver.package_in_run import __version__ as in_runs
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine")]


@pytest.fixture
def square(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def square(number, plus=0):
        return number * number + plus

    return square


@pytest.fixture
def odd(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def odd(number, folder):
        Path(folder, f"{number}.{os.getpid()}.{time.monotonic_ns()}").touch()
        if number == 5:
            raise ValueError(f"no {number}")
        if number == 7:
            os._exit(3)
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return odd


@pytest.fixture
def patient(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def patient(number, folder):
        Path(folder, f"begun.{number}.{time.monotonic_ns()}").touch()
        while not Path(folder, "go").exists():
            time.sleep(0.05)
        return number

    return patient


def begun(folder):
    return [int(path.name.split(".")[1]) for path in Path(folder).glob("begun.*")]


def test_each_value_comes_home_in_order(square):
    campaign = square.campaign(range(3000), same={"plus": 1})
    assert list(campaign.results(timeout=240)) == [number**2 + 1 for number in range(3000)]
    status = campaign.wait(60)
    assert (status.state, status.succeeded, status.failed) == (CampaignState.SUCCEEDED, 3000, 0)
    assert sorted(campaign.results(in_order=False)) == sorted(number**2 + 1 for number in range(3000))
    assert campaign[7] == 50 and len(campaign) == 3000
    attached = Campaign.attach(campaign.id[:12])
    assert attached.id == campaign.id and attached[2999] == 2999**2 + 1


def test_bad_items_cost_the_others_nothing(odd, tmp_path):
    campaign = odd.campaign(range(12), same={"folder": str(tmp_path)})
    values = list(campaign.results(return_exceptions=True, timeout=240))
    assert [value for value in values if isinstance(value, int)] == [0, 1, 2, 3, 4, 6, 8, 10, 11]
    assert isinstance(values[5], ValueError) and values[5].args == ("no 5",)
    assert isinstance(values[7], Crashed) and isinstance(values[9], RunError)
    assert campaign.wait(60).state is CampaignState.FAILED
    assert sorted(campaign.failed) == [5, 7, 9]
    with pytest.raises(ValueError, match="no 5"):
        list(campaign.results())
    runs = [int(path.name.split(".")[0]) for path in tmp_path.iterdir()]
    assert {number: runs.count(number) for number in set(runs)} == {
        number: 3 if number in {7, 9} else 1 for number in range(12)
    }, "an item that kills its worker is tried three times, every other one once"
    events = {
        (event["code"], event["group"].partition(" ")[0]): event["count"] for event in GridClient().events(campaign.id)
    }
    assert events["error", "ValueError"] == 1


def test_the_engine_may_be_killed_at_any_time(patient, tmp_path):
    campaign = patient.campaign(range(40), same={"folder": str(tmp_path)})
    wait_for(lambda: len(begun(tmp_path)) >= 2)
    process = read_engine_state().process
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not alive(process))
    (tmp_path / "go").touch()
    assert list(campaign.results(timeout=240)) == list(range(40))
    assert sorted(begun(tmp_path)) == list(range(40)), "no item has run twice"


def test_a_killed_pilot_costs_at_most_one_more_run_of_an_item_a_worker(patient, tmp_path):
    campaign = patient.campaign(range(30), same={"folder": str(tmp_path)})
    wait_for(lambda: len(begun(tmp_path)) >= 2)
    [pilot] = [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] == "running"]
    for pid in processes_of(pilot["run_id"]):
        os.kill(pid, signal.SIGKILL)
    (tmp_path / "go").touch()
    assert list(campaign.results(timeout=240)) == list(range(30))
    assert len(begun(tmp_path)) <= 32


def processes_of(run_id):
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SRF_RUN_ID={run_id}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_an_item_that_is_longer_than_its_pilot_lasts_is_not_tried_without_end(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2, time_limit="12s")
    def lasting(seconds):
        time.sleep(seconds)
        return seconds

    campaign = lasting.campaign([0, 600, 8, 8, 0])
    values = list(campaign.results(return_exceptions=True, timeout=240))
    assert [value for value in values if not isinstance(value, TimeLimit)] == [0, 8, 8, 0]
    assert isinstance(values[1], TimeLimit) and "time_limit" in values[1].advice
    assert campaign.wait(60).failed == 1
    [event] = [event for event in GridClient().events(campaign.id) if event["code"] == "time_limit"]
    assert event["count"] == 1 and "partition" in event["message"]
    assert len(GridClient().pilots(campaign.id)) <= 6


def test_a_cancelled_campaign_ends_its_pilots(patient, tmp_path):
    campaign = patient.campaign(range(1000), same={"folder": str(tmp_path)})
    wait_for(lambda: len(begun(tmp_path)) >= 2)
    [pilot] = [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] == "running"]
    campaign.cancel()
    wait_for(lambda: not processes_of(pilot["run_id"]))
    wait_for(lambda: campaign.status().ended == 1000)
    status = campaign.status()
    assert (status.state, status.succeeded, status.cancelled) == (CampaignState.CANCELLED, 0, 1000)
    with pytest.raises(RunError, match="cancelled"):
        list(campaign.results())


def test_a_paused_campaign_begins_nothing_until_it_is_resumed(patient, tmp_path):
    campaign = patient.campaign(range(100), same={"folder": str(tmp_path)})
    wait_for(lambda: len(begun(tmp_path)) >= 2)
    campaign.pause()
    client = GridClient()
    wait_for(lambda: all(row["state"] != "leased" for row in client.items(campaign.id, 50, 50)))
    (tmp_path / "go").touch()
    wait_for(lambda: (status := campaign.status()).succeeded and status.succeeded + status.unleased == 100)
    count = campaign.status().succeeded
    assert count < 100 and campaign.state is CampaignState.PAUSED
    campaign.resume()
    assert list(campaign.results(timeout=240)) == list(range(100))


def test_a_pilot_ends_with_its_campaign_also_where_the_engine_ends_then(square):
    campaign = square.campaign(range(10))
    assert len(list(campaign.results(timeout=240))) == 10
    end_engine()
    run_ids = [pilot.run_id for pilot in Store(default_url()).pilots(campaign.id)]
    wait_for(lambda: not any(map(processes_of, run_ids)), IDLE_SECONDS / 2)
    ensure_engine()


def test_an_idle_engine_of_an_older_version_is_started_anew_and_one_with_work_is_told(patient, tmp_path):
    def is_of(version):
        state = dataclasses.replace(read_engine_state(), version=version)
        EngineFiles().state.write_text(json.dumps(dataclasses.asdict(state)))
        return state.pid

    campaign = patient.campaign(range(2), same={"folder": str(tmp_path)})
    for version, advice in (("0.0.1", "srf down"), ("", "srf down"), ("999.0", "newer")):
        pid = is_of(version)
        with pytest.raises(GridError, match="slurm-ray-flow") as caught:
            GridClient().campaigns()
        assert advice in caught.value.advice
        assert campaign.status().total == 2, "a client that has spoken with it goes on"
    (tmp_path / "go").touch()
    assert list(campaign.results(timeout=240)) == [0, 1]
    wait_for(lambda: campaign.status().state.final)
    is_of("0.0.1")
    assert GridClient().campaign(campaign.id).succeeded == 2
    assert read_engine_state().pid != pid and read_engine_state().version == __version__ == in_runs


def test_what_can_not_be_meant_is_refused_before_anything_is_stored(square):
    before = len(GridClient().campaigns())
    with pytest.raises(OptionError, match="values"):
        square.campaign([])
    with pytest.raises(PayloadError, match="value 2"):
        square.campaign([1, 2, (number for number in range(3))])
    with pytest.raises(OptionError, match="nowhere"):
        square.campaign([1], clusters=["nowhere"])
    with pytest.raises(OptionError, match="retries"):
        square.campaign([1], retries=-1)
    with pytest.raises(OptionError, match="priority"):
        square.campaign([1], priority="high")
    with pytest.raises(OptionError, match="max_queued"):
        square.campaign([1], max_queued=0)
    with pytest.raises(GridError, match="100 items"):
        square.campaign(range(101), test=True)
    with pytest.raises(TypeError):
        square.campaign([(1, 2, 3)], spread=True)
    assert len(GridClient().campaigns()) == before


def test_the_engine_listens_on_loopback_and_wants_its_token(engine):
    state = read_engine_state()
    assert set(listening([state.pid])) == {"127.0.0.1"}
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx.get(f"{state.url}/campaigns", headers=headers, trust_env=False).status_code == 401
    folder = EngineFiles().folder
    assert not [path for path in folder.rglob("*") if path.stat().st_mode & 0o077], "all is its user's alone"
    assert EngineFiles().token() not in Path(f"/proc/{state.pid}/cmdline").read_text()
