"""A function on this machine that is told of its end in time, through the whole launch."""

import pytest

pytestmark = pytest.mark.server


def test_a_function_saves_what_it_has_before_its_time_is_up(work):
    import tries

    reason, left = tries.saves_in_time()
    assert reason == "time_limit"
    assert 10 < left <= 16
