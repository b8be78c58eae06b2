"""When a cluster is closed to a campaign, and what a new one gets."""

from hypothesis import given
from hypothesis import strategies as st

from slurm_ray_flow.core.grid.troubles import WINDOW, Verdict, Window, verdict

GOOD = Window().with_outcomes([False] * 5)
OUTCOMES = st.lists(st.booleans(), max_size=60)


def test_a_cluster_is_closed_where_most_fail_that_do_not_elsewhere():
    bad = GOOD.with_outcomes([True] * 11)
    assert verdict(bad, [GOOD]) is Verdict.QUARANTINED
    assert verdict(GOOD.with_outcomes([True] * 10), [GOOD]) is Verdict.OPEN, "that is no more than half of 20"
    assert verdict(bad, [bad]) is Verdict.OPEN, "they fail everywhere: the function is wrong"
    assert verdict(bad, []) is Verdict.OPEN, "there is nothing to compare with"
    assert verdict(bad, [Window()]) is Verdict.SUSPECT
    assert verdict(bad, [Window(), GOOD]) is Verdict.QUARANTINED


def test_a_cluster_gets_more_after_its_first_value_or_where_nothing_is_to_be_compared_after_its_first_outcome():
    failing = Window().with_outcomes([True] * 3)
    assert verdict(failing, []) is Verdict.OPEN
    assert verdict(failing, [failing]) is Verdict.CANARY
    assert verdict(failing.with_outcomes([True] * 9), [failing]) is Verdict.OPEN, "they fail everywhere"
    assert verdict(Window(), []) is verdict(Window().with_outcomes([True] * 3), [GOOD]) is Verdict.CANARY
    assert verdict(Window().with_outcomes([True, False]), []) is Verdict.OPEN


def test_what_was_long_ago_does_not_count():
    once_bad = Window().with_outcomes([True] * 50).with_outcomes([False] * 10)
    assert verdict(once_bad, [GOOD]) is Verdict.OPEN


@given(OUTCOMES, OUTCOMES)
def test_the_window_is_that_of_the_last_outcomes(first, second):
    both = Window().with_outcomes(first).with_outcomes(second)
    assert both == Window().with_outcomes([*first, *second])
    assert list(both.failed) == [*first, *second][-WINDOW:]


@given(OUTCOMES, st.lists(OUTCOMES, max_size=3))
def test_two_clusters_are_never_both_closed(here, others):
    windows = [Window().with_outcomes(one) for one in (here, *others)]
    closed = []
    for window in windows:
        elsewhere = [other for other in windows if other is not window and other not in closed]
        if verdict(window, elsewhere) is Verdict.QUARANTINED:
            closed.append(window)
    assert len(closed) < len(windows)
