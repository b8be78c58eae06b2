"""Why an item waits, or where it is."""

import pytest

from slurm_ray_flow.core.grid.explain import explain
from slurm_ray_flow.core.grid.model import Campaign, CampaignState, ClusterShare, ItemRow, Pilot

OPEN, CLOSED = ClusterShare("desi"), ClusterShare("curnagl", state="paused", reason="no such partition")

DRAINED = ClusterShare("desi", state="drained", reason="drained by bob: disks")


def campaign(**fields):
    blank = {"id": "c", "name": "", "user": "", "function": "", "total": 100, "clusters": (OPEN,)}
    return Campaign(**{**blank, **fields})


def pilot(number=3, state="running", cluster="desi", started_at=60.0):
    return Pilot(number, "r", "c", cluster, state, 0, 4, 30.0, started_at, None, "", "", 0, 0)


def told(held, row, pilots=()):
    return explain(held, row, pilots, 1000.0, lambda seconds: f"<{seconds:.0f}>")


@pytest.mark.parametrize(
    ("held", "row", "pilots", "words"),
    [
        (campaign(next_number=10), ItemRow(15, "waiting"), [pilot()], ["5 items", "1 pilot with 4 workers", "desi"]),
        (campaign(next_number=10), ItemRow(10, "waiting"), [], ["next one", "no pilot yet"]),
        (
            campaign(),
            ItemRow(3, "waiting"),
            [pilot(state="waiting", started_at=None)],
            ["no pilot runs on desi", "<30>"],
        ),
        (campaign(next_number=90, waiting=3), ItemRow(3, "waiting", attempts=1), [pilot()], ["at most 12 items"]),
        (campaign(clusters=(CLOSED,)), ItemRow(3, "waiting"), [], ["curnagl is closed", "no such partition"]),
        (campaign(clusters=(DRAINED,)), ItemRow(3, "waiting"), [], ["desi is drained by bob: disks"]),
        (campaign(state=CampaignState.PAUSED, reason="lunch"), ItemRow(3, "waiting"), [], ["paused", "lunch"]),
        (
            campaign(),
            ItemRow(3, "waiting", attempts=2, not_before=1060.0, error="no"),
            [],
            ["<1060>", "attempt 2", "no"],
        ),
        (campaign(), ItemRow(3, "waiting", 9.0, error="its pilot's time limit"), [], ["time limit", "3 items"]),
        (campaign(), ItemRow(3, "leased", pilot=3), [pilot()], ["pilot 3", "<60>"]),
        (
            campaign(),
            ItemRow(3, "leased", pilot=3, attempts=1),
            [pilot(state="waiting")],
            ["attempt 2", "waits", "<30>"],
        ),
        (
            campaign(),
            ItemRow(3, "succeeded", 2.0, attempts=1, pilot=3),
            [pilot()],
            ["value", "1 attempt,", "2.0 s", "desi"],
        ),
        (
            campaign(),
            ItemRow(3, "failed", 0.5, attempts=2, error="ValueError: x"),
            [],
            ["failed", "2 attempts", "ValueError"],
        ),
        (campaign(), ItemRow(3, "crashed", 0.5, attempts=3, error="died"), [], ["given up", "3 attempts", "died"]),
        (campaign(), ItemRow(3, "cancelled"), [], ["cancelled", "never tried"]),
    ],
)
def test_an_item_is_explained_in_a_sentence_with_numbers(held, row, pilots, words):
    text = told(held, row, pilots)
    assert text.startswith(f"Item {row.number} ") and text.endswith(".")
    for word in words:
        assert word in text
