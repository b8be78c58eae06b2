"""Campaigns over three clusters at once: Slurm, a server by SSH, and this machine."""

import os
import signal

import pytest

from slurm_ray_flow import Campaign, CampaignState
from slurm_ray_flow.blocks.grid_engine import end_engine, ensure_engine, read_engine_state
from slurm_ray_flow.grid.client import GridClient
from support import wait_for

pytestmark = pytest.mark.server


@pytest.fixture(scope="module", autouse=True)
def engine(server):
    yield ensure_engine()
    end_engine()


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
    values = list(Campaign.attach(campaign.id).results(timeout=180))
    assert [number for number, _ in values] == list(range(400))
    assert len({host for _, host in values}) == 3
    assert campaign.wait(60).state is CampaignState.SUCCEEDED
    wait_for(lambda: not running(campaign))
    jobs.over()
    for pilot in GridClient().pilots(campaign.id):
        launches.over(pilot["run_id"])


def running(campaign):
    return [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] == "running"]
