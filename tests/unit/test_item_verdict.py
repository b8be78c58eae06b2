"""What became of an item by its result's line and bytes."""

import pytest

from slurm_ray_flow.core.errors import TimeLimit
from slurm_ray_flow.core.grid.model import ItemState
from slurm_ray_flow.core.grid.work import is_too_long, items_in_time, too_long_text
from slurm_ray_flow.core.items import ItemResult, outcome_of_item
from slurm_ray_flow.grid.cluster_thread import state_of


@pytest.mark.parametrize(
    ("kind", "value", "state"),
    [
        ("value", b"bytes", ItemState.SUCCEEDED),
        ("value", b"", ItemState.SUCCEEDED),
        ("error", b"bytes", ItemState.FAILED),
        ("crashed", b"{}", ItemState.CRASHED),
        ("value", None, ItemState.CRASHED),
        ("error", None, ItemState.CRASHED),
        ("interrupted", b"", ItemState.WAITING),
        ("time_limit", b"{}", ItemState.FAILED),
    ],
)
def test_an_item_whose_bytes_are_damaged_has_no_value(kind, value, state):
    assert state_of(ItemResult(7, 1, kind, 0.1, 0, 5, 0), value) is state


@pytest.mark.parametrize(
    ("seconds", "pilot_seconds", "earlier", "too_long"),
    [
        (59.0, 60.0, 0, True),
        (30.0, 60.0, 0, False),
        (30.0, 60.0, 1, False),
        (30.0, 60.0, 2, True),
        (9e9, None, 0, False),
    ],
)
def test_an_item_that_had_all_the_time_of_a_pilot_or_was_ended_three_times_is_too_long(
    seconds, pilot_seconds, earlier, too_long
):
    assert is_too_long(seconds, pilot_seconds, earlier) is too_long


def test_what_is_too_long_is_told_with_the_limit_and_what_to_raise():
    error = outcome_of_item(
        "failed", b'{"cause": "time_limit", "message": "%s"}' % _text(59.0, 60.0, 3), "there"
    ).exception
    assert isinstance(error, TimeLimit)
    assert "1 min 0 s" in error.what and "3 times" in error.what
    assert "time_limit" in error.advice and "partition" in error.advice


def _text(*fields):
    return too_long_text(*fields).replace("\n", "\\n").encode()


@pytest.mark.parametrize(
    ("mean", "left", "count"),
    [(10.0, 35.0, 6), (10.0, 9.0, 0), (None, 5.0, 2), (None, -1.0, 0), (0.0, float("inf"), 80_000)],
)
def test_a_pilot_gets_no_more_items_than_its_time_is_enough_for(mean, left, count):
    assert items_in_time(mean, 2, left) == count


def test_an_outcome_without_bytes_is_a_crash():
    assert outcome_of_item("crashed", b"", "there").exception.cause == "crashed"
