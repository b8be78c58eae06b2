"""What follows on a failure, by its cause."""

import pytest

from slurm_ray_flow import (
    Cancelled,
    Crashed,
    Lost,
    NodeFailed,
    OptionError,
    OutOfMemory,
    Preempted,
    Rejected,
    TimeLimit,
)
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.retries import LONGEST_PAUSE, Retries
from slurm_ray_flow.remote.shared.failures import STANDS_FOR

MIB = 1024**2


def test_memory_doubles_as_often_as_was_allowed():
    retries = Retries(Options().but(memory="200M", on_out_of_memory="double memory, at most 2 times"))
    again = retries.after(OutOfMemory("too much"))
    assert again.text == "out of memory at 200M; tries again with 400M (1 of 2)"
    assert again.pause == 0
    assert retries.options.memory == 400 * MIB
    assert retries.after(OutOfMemory("too much")).text.endswith("at 400M; tries again with 800M (2 of 2)")
    assert retries.after(OutOfMemory("too much")) is None
    assert retries.options.memory == 800 * MIB


def test_time_grows_by_its_own_rule_and_count():
    rules = {"on_out_of_memory": "double, at most 1 time", "on_time_limit": "add 30m, at most 1 time"}
    retries = Retries(Options().but(memory="1G", time_limit="1h", **rules))
    assert retries.after(TimeLimit("late")).text == "the time limit passed at 1h; tries again with 1h30m (1 of 1)"
    assert retries.after(OutOfMemory("too much")) is not None
    assert retries.after(TimeLimit("late")) is None
    assert (retries.options.memory, retries.options.time_limit) == (1024 * MIB * 2, 5400)


@pytest.mark.parametrize("failure", [OutOfMemory("m"), TimeLimit("t"), Crashed("c"), Cancelled("c"), Rejected("r")])
def test_what_would_fail_again_is_not_tried_again(failure):
    assert Retries(Options().but(retries=5)).after(failure) is None


@pytest.mark.parametrize("failure", [Preempted("gone."), NodeFailed("gone.")])
def test_what_was_taken_away_is_submitted_again_without_being_asked(failure):
    retries = Retries(Options())
    texts = [again.text for again in iter(lambda: retries.after(failure), None)]
    assert [text[-8:] for text in texts] == ["(1 of 3)", "(2 of 3)", "(3 of 3)"]
    assert texts[0].startswith("gone; tries again in ")
    assert Retries(Options().but(resubmit=0)).after(failure) is None


def test_a_transient_failure_counts_against_retries_and_the_pauses_grow_to_a_bound():
    assert Retries(Options()).after(Lost("gone")) is None
    retries = Retries(Options().but(retries=20))
    pauses = [retries.after(Lost("gone")).pause for _ in range(20)]
    assert retries.after(Lost("gone")) is None
    assert 0.5 <= pauses[0] <= 1.5
    assert max(pauses) <= 1.5 * LONGEST_PAUSE


class Odd(ValueError):
    pass


def stand_in(name):
    error = ValueError("no")
    vars(error)[STANDS_FOR] = name
    return error


@pytest.mark.parametrize(
    ("wanted", "failure", "expected"),
    [
        ((), ValueError("no"), False),
        (ValueError, Odd("no"), True),
        ([OSError, "ValueError"], Odd("no"), True),
        (["builtins.ValueError"], Odd("no"), True),
        (OSError, Odd("no"), False),
        ("Refused", stand_in("shop.Refused"), True),
        ("shop.Refused", stand_in("shop.Refused"), True),
        ("OSError", stand_in("shop.Refused"), False),
    ],
)
def test_the_functions_own_exception_is_tried_again_for_when_asked(wanted, failure, expected):
    again = Retries(Options().but(retries=1, retry_on=wanted)).after(failure)
    assert bool(again) is expected
    if again:
        assert again.text.startswith(f"{failure}; tries again in")


def test_a_value_is_no_failure():
    assert Retries(Options().but(retries=3)).after(None) is None


def test_a_refused_larger_try_says_what_the_run_ran_out_of():
    retries = Retries(Options().but(memory="1G", on_out_of_memory="double"))
    refused = Rejected("memory=2.0 GiB is more than the 1.5 GiB there are", advice="ask for less")
    assert retries.explanation(refused) is None
    retries.after(OutOfMemory("The call used 1.1 GiB", where="desi"))
    better = retries.explanation(refused)
    assert isinstance(better, OutOfMemory)
    assert (better.what, better.where) == ("The call used 1.1 GiB", "desi")
    assert "1.5 GiB there are" in better.advice
    assert retries.explanation(Lost("gone")) is None


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"on_out_of_memory": "double"}, 'memory="4G"'),
        ({"on_time_limit": "double"}, 'time_limit="2h"'),
        ({"retry_on": ValueError}, "retries=1"),
    ],
)
def test_a_rule_needs_what_it_is_about(wrong, hint):
    with pytest.raises(OptionError) as caught:
        Options().but(**wrong)
    assert hint in caught.value.advice
