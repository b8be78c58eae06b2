"""Several campaigns on this machine, and a campaign on a cluster that fails, through a real engine and real pilots."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from slurm_ray_flow import CampaignState, LocalMachine, slurm_ray_flow
from slurm_ray_flow.blocks.grid_engine import read_engine_state
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.prefect_events import (
    CAMPAIGN_BEGAN,
    CAMPAIGN_ENDED,
    CLUSTER_DRAINED,
    CLUSTER_QUARANTINED,
    ITEMS_FAILED,
)
from slurm_ray_flow.grid.client import GridClient
from srf_command import Command
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine"), pytest.mark.timeout(600)]


@pytest.fixture
def slow(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def slow(number):
        time.sleep(0.2)
        return number

    return slow


@pytest.fixture
def choosy(server):
    @slurm_ray_flow(ray="never", cpus_per_node=2)
    def choosy(number, bad):
        time.sleep(0.1)
        if Path(bad) in Path.cwd().parents:
            raise OSError("the scratch is read-only here")
        return number

    return choosy


@pytest.fixture
def failing_lab(server, tmp_path):
    """A second cluster of this machine, saved under a name; gives its folder."""
    with connected(server):
        LocalMachine(root=tmp_path / "root").save("failing-lab", overwrite=True)
    yield tmp_path / "root"
    with connected(server):
        LocalMachine.delete("failing-lab")


def pilots_of(campaign, *states):
    return [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] in states]


def told(api, campaign, event):
    wanted = {"event": {"name": [event]}, "resource": {"id": [f"slurm-ray-flow.campaign.{campaign.id}"]}}
    return api.post("/events/filter", {"filter": wanted})["events"]


def test_two_campaigns_of_one_user_take_turns_on_this_machine(slow, api):
    first = slow.campaign(range(20_000))
    wait_for(lambda: first.status().succeeded)
    second = slow.campaign(range(10))
    assert list(second.results(timeout=240)) == list(range(10))
    status = first.status()
    assert status.state is CampaignState.ACTIVE
    assert 0 < status.succeeded < 20_000
    before = status.succeeded
    wait_for(lambda: first.status().succeeded > before)
    [mine], others = pilots_of(first, "running"), pilots_of(first, "ended")
    assert others, "it has given its place up, and has it again"
    [theirs] = pilots_of(second, "running", "ended")
    assert max(other["ended_at"] for other in others) <= theirs["started_at"] < mine["started_at"]
    assert [pilot["cause"] for pilot in others] == [""] * len(others)
    first.cancel()
    wait_for(lambda: not pilots_of(first, "running", "waiting", "requested"))
    assert first.status().failed == 0
    wait_for(lambda: told(api, first, CAMPAIGN_ENDED))
    assert [event["payload"]["name"] for event in told(api, second, CAMPAIGN_BEGAN)] == ["slow"]


def test_a_cluster_where_most_items_fail_is_closed_and_the_others_do_the_rest(choosy, failing_lab, api):
    campaign = choosy.campaign(range(300), clusters=["local", "failing-lab"], same={"bad": str(failing_lab)})
    status = campaign.wait(180)
    assert status.state is CampaignState.FAILED
    assert 10 < status.failed <= 20, "items went there a few at a time"
    assert status.succeeded == 300 - status.failed
    [good, bad] = status.clusters
    assert (good.state, bad.state) == ("open", "quarantined")
    assert "20" in bad.reason
    [failed, closed] = sorted(GridClient().events(campaign.id), key=lambda event: event["code"])
    assert (failed["code"], failed["cluster"], failed["count"]) == ("error", "failing-lab", status.failed)
    assert closed["code"] == "quarantined"
    wait_for(lambda: not pilots_of(campaign, "running", "waiting", "requested"))
    wait_for(lambda: told(api, campaign, CLUSTER_QUARANTINED))
    [event] = told(api, campaign, CLUSTER_QUARANTINED)
    assert (event["payload"]["cluster"], event["payload"]["level"]) == ("failing-lab", "error")
    [group] = told(api, campaign, ITEMS_FAILED)
    assert "read-only" in group["payload"]["message"]


def test_a_drained_cluster_gets_no_pilot_until_it_is_resumed(slow, failing_lab, api):
    """In between the engine is killed."""
    srf, client = Command(), GridClient()
    both = slow.campaign(range(1000), clusters=["local", "failing-lab"])
    wait_for(lambda: {pilot["cluster"] for pilot in pilots_of(both, "running")} == {"local", "failing-lab"})
    assert "is drained" in srf("clusters", "failing-lab", "--drain", "--reason", "new disks").stdout
    wait_for(lambda: {pilot["cluster"] for pilot in pilots_of(both, "requested", "waiting", "running")} == {"local"})
    [gone] = [pilot for pilot in client.pilots(both.id) if pilot["cluster"] == "failing-lab"]
    assert (gone["cause"], gone["failed"]) == ("", 0), "it has ended in peace"
    [event] = client.events(both.id)
    assert (event["code"], event["cluster"]) == ("drained", "failing-lab")
    assert "new disks" in event["message"]
    wait_for(lambda: told(api, both, CLUSTER_DRAINED))
    os.kill(read_engine_state().pid, signal.SIGKILL)
    only = slow.campaign(range(3), clusters=["failing-lab"])
    for words in (["stat", only.id], ["explain", only.id, "0"], ["events", only.id]):
        assert "new disks" in srf("grid", *words).stdout
    for view in ("--infos", "--more-infos", "--usage", "--bars"):
        assert "drained" in srf("clusters", "failing-lab", view).stdout or view == "--usage"
    [shown] = json.loads(srf("clusters", "failing-lab", "--more-infos", "--json").stdout)
    assert {one["here"] for one in shown["grid"]["campaigns"]} == {"drained"}
    assert shown["grid"]["drain"]["reason"] == "new disks"
    assert sum(use["core_seconds"] for use in shown["grid"]["users"].values()) > 0
    assert {finding["name"] for finding in shown["load"]["findings"]} >= {"disk", "python"}
    assert only.state is CampaignState.ACTIVE, "it waits, and is not paused"
    assert not client.pilots(only.id)
    assert "again" in srf("clusters", "failing-lab", "--resume").stdout
    assert "was not drained" in srf("clusters", "failing-lab", "--resume").stdout
    assert list(only.results(timeout=240)) == [0, 1, 2]
    assert client.events(only.id) == []
    both.cancel()
    wait_for(lambda: not pilots_of(both, "running", "waiting", "requested"))
    assert both.status().failed == 0


def test_a_campaign_with_too_many_failures_ends_and_says_why(choosy, api):
    campaign = choosy.campaign(range(10_000), same={"bad": os.sep}, max_failures=5)
    status = campaign.wait(180)
    assert status.state is CampaignState.CANCELLED
    assert 5 < status.failed < 5_000
    assert "max_failures=5" in status.reason
    wait_for(lambda: told(api, campaign, CAMPAIGN_ENDED))
    [event] = told(api, campaign, CAMPAIGN_ENDED)
    assert "max_failures=5" in event["payload"]["message"]
    wait_for(lambda: not pilots_of(campaign, "running", "waiting", "requested"))
