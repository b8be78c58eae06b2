"""Campaigns over three clusters at once: Slurm, a server by SSH, and this machine."""

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from hosts import faults
from slurm_ray_flow import Campaign, CampaignState
from slurm_ray_flow.blocks.grid_engine import read_engine_state
from slurm_ray_flow.grid.client import GridClient
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


def running(campaign):
    return [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] == "running"]


def test_what_fails_all_the_time_costs_no_outcome(clusters, jobs, launches):
    """In turn the engine is killed, a pilot with all its processes, and the SSH connections."""
    import items

    campaign = items.quick.campaign(range(3000), clusters=clusters, max_pilots=1)
    wait_for(lambda: campaign.status().succeeded > 0)
    troubles = itertools.cycle([kill_engine, kill_pilot, kill_connections])
    happened, until = set(), time.monotonic() + 60
    while not campaign.state.final and time.monotonic() < until:
        trouble = next(troubles)
        if trouble(campaign, jobs, launches):
            happened.add(trouble)
        time.sleep(2)
    assert happened == {kill_engine, kill_pilot, kill_connections}
    assert list(campaign.results(timeout=300)) == list(range(3000))
    assert sorted(campaign.results(in_order=False)) == list(range(3000)), "no item has two outcomes"
    status = campaign.wait(60)
    assert (status.state, status.succeeded) == (CampaignState.SUCCEEDED, 3000)
    wait_for(lambda: not running(campaign))
    jobs.over()
    for pilot in GridClient().pilots(campaign.id):
        wait_for(lambda: not processes_of(pilot["run_id"]))  # noqa: B023 - it is asked at once
        launches.over(pilot["run_id"])


def kill_engine(campaign, jobs, launches):
    os.kill(read_engine_state().pid, signal.SIGKILL)
    return True


def kill_pilot(campaign, jobs, launches):
    """That with the most outcomes; one that has none might be the third of its cluster in a row, which closes it."""
    pilot = max(running(campaign), key=lambda pilot: pilot["succeeded"], default=None)
    if pilot is None or not pilot["succeeded"]:
        return False
    for pid in (found := processes_of(pilot["run_id"])):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(found)


def kill_connections(campaign, jobs, launches):
    return faults.kill_sessions(jobs.host, "alice") + faults.kill_sessions(launches.host, "alice") > 0


def processes_of(run_id):
    """The processes of a run on any host, by this machine's process ids."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SRF_RUN_ID={run_id}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found
