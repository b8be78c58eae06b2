"""What Prefect shows of a campaign: states, progress and its page."""

import dataclasses

import pytest

from slurm_ray_flow.core.grid import campaign_page
from slurm_ray_flow.core.grid.campaign_page import OURS, PilotSize, flow_state, page, progress
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ClusterShare, GridEvent, Pilot
from slurm_ray_flow.core.sweep import TAG

CAMPAIGN = Campaign(
    id="0123456789abcdef", name="sums | all", user="alice", function="add", total=200, next_number=120,
    succeeded=90, failed=10, created=1000.0,
    clusters=(ClusterShare("desi"), ClusterShare("slurm/curnagl", 1, state="quarantined", reason="items failed")),
)  # fmt: skip


def pilot(number, **fields):
    known = {
        "run_id": f"{number:032x}", "campaign": CAMPAIGN.id, "cluster": "desi", "state": "running", "workers": 4,
        "results_offset": 0, "created": 1000.0, "started_at": 1000.0, "ended_at": None, "cause": "", "message": "",
        "succeeded": 0, "failed": 0,
    }  # fmt: skip
    return Pilot(id=number, **{**known, **fields})


def event(number, **fields):
    known = {
        "campaign": CAMPAIGN.id, "cluster": "desi", "level": "error", "code": "error", "group": "ValueError: add.py:3",
        "message": "no 5", "count": 1, "first_at": 1000.0, "last_at": 1000.0, "open": True,
    }  # fmt: skip
    return GridEvent(id=number, **{**known, **fields})


def shown(pilots=(), events=(), campaign=CAMPAIGN, sizes=None, now=4600.0):
    return page(campaign, pilots, events, sizes or {}, lambda run: f"http://here/{run}", now).data


@pytest.mark.parametrize(
    ("state", "ended", "live", "expected"),
    [
        (CampaignState.ACTIVE, 0, 1, "RUNNING"),
        (CampaignState.PAUSED, 0, 1, "PAUSED"),
        (CampaignState.CANCELLED, 200, 1, "CANCELLING"),
        (CampaignState.CANCELLED, 199, 0, "CANCELLING"),
        (CampaignState.CANCELLED, 200, 0, "CANCELLED"),
        (CampaignState.SUCCEEDED, 200, 1, "COMPLETED"),
        (CampaignState.FAILED, 200, 0, "FAILED"),
    ],
)
def test_each_state_of_a_campaign_is_one_of_its_flow_run(state, ended, live, expected):
    campaign = dataclasses.replace(CAMPAIGN, state=state, succeeded=ended, failed=0, reason="a reason")
    found = flow_state(campaign, live)
    assert found.type == expected and found.message.startswith(OURS)
    assert found.final == (expected in {"COMPLETED", "FAILED", "CANCELLED"})
    assert state in {CampaignState.ACTIVE, CampaignState.SUCCEEDED} or "a reason" in found.message


def test_the_tags_keep_it_from_the_automation_that_ends_silent_launches():
    tags = campaign_page.tags_of_campaign(CAMPAIGN)
    assert TAG not in tags
    assert {"campaign:01234567", "add", "desi", "curnagl", campaign_page.TAG} == set(tags)


def test_progress_is_the_part_of_the_items_that_have_ended():
    content = progress(CAMPAIGN)
    assert (content.type, content.data) == ("progress", 50.0)
    assert "100 of 200" in content.description and "10 failed" in content.description
    assert progress(dataclasses.replace(CAMPAIGN, total=0)).data == 100.0


def test_five_thousand_items_of_which_some_fail_are_shown():
    for ended in range(0, 5001, 250):
        failed = ended // 7
        campaign = dataclasses.replace(
            CAMPAIGN, total=5000, next_number=ended, succeeded=ended - failed, failed=failed, waiting=0
        )
        assert progress(campaign).data == ended / 50
        events = [event(number, group=f"ValueError: add.py:{number}", count=failed) for number in range(bool(failed))]
        text = shown([pilot(1, succeeded=ended - failed, failed=failed)], events, campaign)
        assert (f"| {failed} | ValueError: add.py:0" in text) == bool(failed)


def test_failures_are_one_row_for_each_cause_the_most_frequent_first():
    events = [
        event(1, count=2),
        event(2, count=3, cluster="curnagl", message="no 6 | <b>", last_at=2000.0),
        event(3, code="crashed", group="", message="killed by signal 9", count=9),
        event(4, code="pilot", message="a pilot ended without an outcome", level="error"),
    ]
    text = shown(events=events)
    rows = [line for line in text.partition("### Failures by cause")[2].splitlines() if line.startswith("| ")][2:]
    assert rows[0].startswith("| 9 |") and "killed by signal 9" in rows[0]
    assert rows[1].startswith("| 5 |") and "no 6 \\| \\<b\\>" in rows[1] and "curnagl, desi" in rows[1]
    assert "a pilot ended" in text.partition("### What else happened")[2]


def test_what_pilots_cost_is_their_cores_by_their_time():
    pilots = [
        pilot(1, started_at=1000.0, ended_at=2800.0, state="ended", cause="killed", succeeded=60, failed=1),
        pilot(2, started_at=2800.0, succeeded=30, failed=9),
        pilot(3, started_at=None, run_id="", state="requested"),
        pilot(4, cluster="slurm/curnagl", started_at=1000.0, ended_at=4600.0, state="ended"),
    ]
    text = shown(pilots, sizes={"slurm/curnagl": PilotSize(8, 2)})
    summary, _, rest = text.partition("### Where items ran")
    assert "12.00 core-hours, 2.00 GPU-hours" in summary, "4 cores for an hour, 8 cores and 2 GPUs for another"
    assert "1.67 items a minute" in summary, "100 items in an hour"
    where, _, table = rest.partition("### Pilots")
    assert "| desi | open | 3 | 90 | 10 | 4.00 core-hours |" in where
    assert "quarantined: items failed" in where
    assert f"| [00000000](http://here/{1:032x}) | desi | ended: killed | 1800 | 60 | 1 | 2.00 core-hours |" in table


def test_an_ended_campaign_costs_no_more():
    ended = dataclasses.replace(CAMPAIGN, state=CampaignState.FAILED, ended_at=1900.0)
    pilots = [pilot(1, succeeded=90)]
    assert shown(pilots, campaign=ended, now=9e9) == shown(pilots, campaign=ended, now=1901.0)
    assert "waiting" not in shown(pilots, campaign=ended)


def test_many_pilots_are_counted_and_the_newest_listed():
    text = shown([pilot(number) for number in range(1, 201)])
    table = text.partition("### Pilots")[2]
    assert f"{200:032x}" in table and f"http://here/{1:032x}" not in table
    assert "and 150 more" in table


def test_a_campaign_without_pilots_has_a_page():
    text = shown()
    assert "no pilot has begun" in text and "not known yet" in text
