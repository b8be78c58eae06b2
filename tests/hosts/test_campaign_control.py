"""Pilots on a real Slurm: an idle cluster fills, a busy one is left to its users, one that refuses is asked less."""

import secrets

import pytest

from hosts.slurm import CONF
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.grid.control import FIRST_PAUSE
from slurm_ray_flow.grid.client import GridClient
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine"), pytest.mark.timeout(900)]
PLACES = 16


@pytest.fixture
def crowded(jobs):
    """The two nodes claim eight CPUs each: a pilot's items sleep."""
    before = {host: host.path(CONF).read_text() for host in jobs.lab.hosts.values()}
    for host, text in before.items():
        assert "CoresPerSocket=4 " in text
        host.path(CONF).write_text(text.replace("CoresPerSocket=4 ", "CoresPerSocket=8 ").replace("CPUs=4 ", "CPUs=8 "))
    jobs.slurm.restart()
    yield
    for host, text in before.items():
        host.path(CONF).write_text(text)
    jobs.slurm.restart()


@pytest.fixture
def begin(jobs):
    """Begins a campaign of more items than it will do, which is cancelled at the end; nothing is left of it then."""
    import items

    begun = []

    def begin(cluster=jobs.name):
        chosen = items.slow.with_options(memory="400M")
        begun.append(chosen.campaign(range(100_000), clusters=[cluster], max_pilots=PLACES))
        return begun[-1]

    yield begin
    for campaign in begun:
        campaign.cancel()
        wait_for(lambda campaign=campaign: not pilots(campaign, "requested", "waiting", "running"))
    jobs.over()


def pilots(campaign, *states):
    return [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] in states]


def test_an_idle_cluster_fills_with_pilots_one_doubling_after_the_other(crowded, jobs, begin):
    campaign = begin()
    wait_for(lambda: len(pilots(campaign, "running")) == PLACES)
    made = GridClient().pilots(campaign.id)
    assert len(made) == PLACES, "never more than max_pilots"
    first = min(pilot["started_at"] for pilot in made)
    assert len([pilot for pilot in made if pilot["created"] < first]) == 1, "one shows the way"
    print(f"{PLACES} after {max(pilot['started_at'] for pilot in made) - campaign.status().created:.0f} s")


def test_a_busy_cluster_is_left_to_its_users(jobs, begin):
    with jobs.full():
        campaign = begin()
        wait_for(lambda: pilots(campaign, "waiting"))
        [waiting] = pilots(campaign, "waiting")
        wait_for(lambda: jobs.jobs(waiting["run_id"]))
        second = begin()
        assert jobs.job(waiting["run_id"])["JobState"] == "PENDING"
        assert not GridClient().pilots(second.id), "one of ours waits already"
        assert [pilot["id"] for pilot in GridClient().pilots(campaign.id)] == [waiting["id"]]
    wait_for(lambda: len(pilots(campaign, "running")) > 1)


def test_a_cluster_that_refuses_is_asked_later_and_later_and_says_so(server, jobs, begin):
    name = f"refusing-{secrets.token_hex(3)}"
    with connected(server):
        jobs.but(reservation="nothing").save(name)
    campaign = begin(name)
    wait_for(lambda: len(pilots(campaign, "ended")) == 2)
    [first, second] = pilots(campaign, "ended")
    assert (first["cause"], second["cause"]) == ("rejected", "rejected")
    assert second["created"] - first["ended_at"] >= FIRST_PAUSE - 1
    [event] = GridClient().events(campaign.id)
    assert (event["code"], event["count"]) == ("pilot", 2)
    assert "reservation" in event["message"]
