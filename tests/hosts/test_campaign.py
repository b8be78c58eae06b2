"""Campaigns over three clusters at once: Slurm, a server by SSH, and this machine."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from hosts import faults
from slurm_ray_flow import Campaign, CampaignState
from slurm_ray_flow.blocks.grid_engine import read_engine_state
from slurm_ray_flow.blocks.server.address import read_state
from slurm_ray_flow.blocks.server.files import server_files
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.remote.shared.items import RESULTS, VALUES
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine")]


@pytest.fixture
def clusters(jobs, launches):
    """The names of the three, of which a campaign may have one pilot each."""
    return [jobs.name, launches.name, "local"]


def test_items_run_on_all_clusters_and_each_has_its_value(clusters, jobs, launches):
    """Meanwhile the engine is killed."""
    import items

    campaign = items.slow.campaign(range(400), clusters=clusters, max_pilots=1)
    wait_for(lambda: {pilot["cluster"] for pilot in running(campaign)} == set(clusters))
    wait_for(lambda: campaign.status().succeeded > 20)
    os.kill(read_engine_state().pid, signal.SIGKILL)
    values = list(Campaign.attach(campaign.id).results(timeout=240))
    assert [number for number, _ in values] == list(range(400))
    assert len({host for _, host in values}) == 3
    assert campaign.wait(60).state is CampaignState.SUCCEEDED
    wait_for(lambda: not running(campaign))
    jobs.over()
    for pilot in GridClient().pilots(campaign.id):
        launches.over(pilot["run_id"])
        for lab in (jobs, launches):
            assert not lab.host.path(f"{lab.root}/runs/{pilot['run_id']}/items/{VALUES}").exists(), "they are at home"


def running(campaign):
    return [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] == "running"]


def test_a_laptop_sleeps_and_its_pilots_go_on(jobs, launches, server):
    """All of home stands still, without a network."""
    import items

    campaign = items.slow.campaign(range(500), clusters=[jobs.name, launches.name], max_pilots=1)
    wait_for(lambda: len(running(campaign)) == 2 and campaign.status().succeeded > 20)
    found, engine, pilots = read_state(server_files()), read_engine_state(), running(campaign)
    results = [
        lab.host.path(f"{lab.root}/runs/{pilot['run_id']}/items/{RESULTS}")
        for pilot in pilots
        for lab in (jobs, launches)
        if lab.name == pilot["cluster"]
    ]
    with faults.cut(jobs.host), faults.cut(launches.host), standing_still(engine.pid, found.pid, found.supervisor_pid):
        before = sum(path.stat().st_size for path in results)
        wait_for(lambda: sum(path.stat().st_size for path in results) > before + 5000)
    assert [number for number, _ in campaign.results(timeout=240)] == list(range(500))
    assert sorted(number for number, _ in campaign.results(in_order=False)) == list(range(500)), "each once"
    assert campaign.wait(60).state is CampaignState.SUCCEEDED
    assert {pilot["run_id"] for pilot in GridClient().pilots(campaign.id)} == {pilot["run_id"] for pilot in pilots}
    assert read_engine_state().pid == engine.pid


@contextlib.contextmanager
def standing_still(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def processes_of(run_id):
    """The processes of a run on any host, by this machine's process ids."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SRF_RUN_ID={run_id}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
