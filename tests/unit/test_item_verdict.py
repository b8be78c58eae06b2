"""What became of an item by its result's line and bytes."""

import pytest

from slurm_ray_flow.core.grid.model import ItemState
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
    ],
)
def test_an_item_whose_bytes_are_damaged_has_no_value(kind, value, state):
    assert state_of(ItemResult(7, 1, kind, 0.1, 0, 5, 0), value) is state


def test_an_outcome_without_bytes_is_a_crash():
    assert outcome_of_item("crashed", b"", "there").exception.cause == "crashed"
