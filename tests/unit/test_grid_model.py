"""The pure parts of the grid: ranges, and when a failed item is tried again."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from slurm_ray_flow.core.grid.model import (
    PAUSES,
    Bundle,
    Campaign,
    CampaignState,
    ItemState,
    after_failure,
    numbers_of,
    ranges_of,
)


@given(st.lists(st.integers(0, 60)))
def test_ranges_are_the_numbers(numbers):
    ranges = ranges_of(numbers)
    assert list(numbers_of(ranges)) == sorted(set(numbers))
    assert all(first + count < other for (first, count), (other, _) in itertools.pairwise(ranges))


def test_a_bundle_gives_its_numbers():
    assert list(Bundle(1, 2, "c", ((0, 2), (7, 3)), 5)) == [0, 1, 7, 8, 9]


def test_each_item_of_a_campaign_is_counted_once():
    campaign = Campaign("c", "n", "u", "f", total=20, next_number=12, waiting=2, succeeded=3, failed=1, cancelled=1)
    assert (campaign.ended, campaign.unleased, campaign.leased) == (5, 10, 5)


def test_only_some_states_are_ends():
    assert [state for state in CampaignState if not state.final] == [CampaignState.ACTIVE, CampaignState.PAUSED]
    assert [state for state in ItemState if not state.final] == [ItemState.WAITING, ItemState.LEASED]


def test_a_failed_item_is_tried_again_as_often_as_its_campaign_says():
    assert after_failure(0, 0, False, 0, now=100.0) is None
    assert after_failure(0, 0, False, 2, now=100.0) == 100.0
    assert after_failure(1, 0, False, 2, now=100.0) == 110.0
    assert after_failure(2, 0, False, 2, now=100.0) is None


def test_crashes_have_a_limit_of_their_own():
    assert after_failure(0, 0, True, 0, now=0.0) == 0.0
    assert after_failure(1, 1, True, 0, now=0.0) == 10.0
    assert after_failure(2, 2, True, 9, now=0.0) is None
    assert after_failure(2, 2, False, 1, now=0.0) == 60.0, "two crashes are no failures"


@given(st.integers(0, 1000))
def test_pauses_grow_and_end_growing(attempts):
    wait = after_failure(attempts, 0, False, 10_000, now=0.0)
    following = after_failure(attempts + 1, 0, False, 10_000, now=0.0)
    assert wait is not None
    assert following is not None
    assert wait <= following <= PAUSES[-1]
