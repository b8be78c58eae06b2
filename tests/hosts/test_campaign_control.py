"""Pilots on a real Slurm: an idle cluster fills, a busy one is left to its users, one that refuses is asked less."""

import itertools
import json
import secrets

import pytest

from hosts.slurm import CONF
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.grid.control import FIRST_PAUSE
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.interface.campaign_start import CampaignOptions
from slurm_ray_flow.interface.jdl import start_described
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


def questions(jobs, since):
    """When a squeue, scontrol or sinfo asked the controller; what one of them asks comes at once."""
    kinds = {"REQUEST_JOB_INFO", "REQUEST_JOB_USER_INFO", "REQUEST_PARTITION_INFO", "REQUEST_NODE_INFO"}
    times = sorted(query.time for query in jobs.slurm.queries("alice") if query.what in kinds and query.time > since)
    return [time for before, time in itertools.pairwise([0.0, *times]) if time - before > 0.5]


def pilots(campaign, *states):
    return [pilot for pilot in GridClient().pilots(campaign.id) if pilot["state"] in states]


def test_an_idle_cluster_fills_with_pilots_one_doubling_after_the_other(crowded, jobs, begin):
    campaign = begin()
    wait_for(lambda: len(pilots(campaign, "running")) == PLACES)
    made = GridClient().pilots(campaign.id)
    assert len(made) == PLACES, "never more than max_pilots"
    first = min(pilot["started_at"] for pilot in made)
    assert len([pilot for pilot in made if pilot["created"] < first]) == 1, "one shows the way"
    asked = questions(jobs, campaign.status().created)
    assert asked, "it was asked at all"
    assert min(after - before for before, after in itertools.pairwise(asked)) >= 1.5, "seldom"
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


def test_a_pilot_that_waits_is_ended_with_its_campaign(jobs, launches):
    """The other cluster has done all; in the queue nothing is left behind."""
    import items

    with jobs.full():
        campaign = items.slow.campaign(range(400), clusters=[jobs.name, launches.name], max_pilots=1)
        wait_for(lambda: [pilot for pilot in pilots(campaign, "waiting") if jobs.jobs(pilot["run_id"])])
        assert len(list(campaign.results(timeout=240))) == 400
        wait_for(lambda: not pilots(campaign, "requested", "waiting", "running"))
        [ended] = [pilot for pilot in GridClient().pilots(campaign.id) if pilot["cluster"] == jobs.name]
        assert (ended["started_at"], ended["succeeded"]) == (None, 0)
        wait_for(lambda: jobs.job(ended["run_id"])["JobState"] not in {"PENDING", "RUNNING"})
    assert not GridClient().events(campaign.id)


def test_a_drained_cluster_has_no_pilot_in_its_queue(jobs, begin):
    client = GridClient()
    with jobs.full():
        campaign = begin()
        wait_for(lambda: pilots(campaign, "waiting"))
        [waiting] = pilots(campaign, "waiting")
        wait_for(lambda: jobs.jobs(waiting["run_id"]))
        client.drain(jobs.name, "new disks")
        try:
            wait_for(lambda: pilots(campaign, "ended"))
            assert jobs.job(waiting["run_id"])["JobState"] == "CANCELLED"
            assert [event["code"] for event in client.events(campaign.id)] == ["drained"]
        finally:
            assert client.resume_cluster(jobs.name)
    wait_for(lambda: pilots(campaign, "running"))
    assert client.events(campaign.id) == []


def test_a_description_has_best_effort_jobs_scripts_and_a_command_for_each_cluster(jobs, tmp_path):
    """This machine is drained, so that the one item runs on Slurm."""
    slurm = {"exec_file": "cat made; echo $SLURM_JOB_ID", "type": "best-effort", "exec_directory": "/tmp"}
    fields = {
        "name": "jobs",
        "nb_jobs": 1,
        "prologue": ["echo {OAR_JOB_ID} > made"],
        "epilogue": ["rm made"],
        "clusters": {"local": {"exec_file": "false", "exec_directory": str(tmp_path)}, jobs.name: slurm},
    }
    (tmp_path / "campaign.json").write_text(json.dumps(fields))
    GridClient().drain("local")
    try:
        campaign = start_described(tmp_path / "campaign.json", CampaignOptions(spread=True))
        list(campaign.results(timeout=300))
    finally:
        GridClient().resume_cluster("local")
    [pilot] = GridClient().pilots(campaign.id)
    job = jobs.job(pilot["run_id"])
    assert job["Partition"] == "spare"
    numbers = [word for word in campaign.log(0).split() if word.isdecimal()]  # alice's shell has words of its own
    assert numbers == [job["JobId"], job["JobId"], "0"]
    wait_for(lambda: not pilots(campaign, "requested", "waiting", "running"))
    assert [event["code"] for event in GridClient().events(campaign.id)] == []


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
