"""How an option grows from try to try, as people write it."""

import itertools

import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.core.options import IncreaseRule, parse_increase_rule

GIB = 1024**3


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("double memory, at most 3 times", IncreaseRule("memory", 2.0, times=3)),
        ("double", IncreaseRule("memory", 2.0)),
        ("Double  Memory , at  most 1 time", IncreaseRule("memory", 2.0, times=1)),
        ("add 8G", IncreaseRule("memory", 1.0, 8 * GIB)),
        ("add 8G memory, up to 64G", IncreaseRule("memory", 1.0, 8 * GIB, most=64 * GIB)),
        ("times 1.5, up to 64G, at most 5 times", IncreaseRule("memory", 1.5, times=5, most=64 * GIB)),
    ],
)
def test_memory(text, meant):
    assert parse_increase_rule(text, "on_out_of_memory", "memory") == meant


def test_time():
    assert parse_increase_rule(
        "double time_limit, at most 2 times, up to 12h", "on_time_limit", "time_limit"
    ) == IncreaseRule("time_limit", 2.0, times=2, most=12 * 3600)
    assert parse_increase_rule("add 1h30m", "on_time_limit", "time_limit").more == 5400


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "more",
        "double time_limit",
        "double memory at most 3 times",
        "double memory, at most 0 times",
        "double memory, at most three times",
        "times 1",
        "times 0.5, at most 2 times",
        "add lots",
        "double, up to the sky",
        "double, soon",
        "double,",
        3,
        True,
    ],
)
def test_what_is_no_rule_gets_an_example(wrong):
    with pytest.raises(OptionError, match="on_out_of_memory") as caught:
        parse_increase_rule(wrong, "on_out_of_memory", "memory")
    assert "64G" in caught.value.advice


@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        ("double", [1, 2, 4, 8]),
        ("double, up to 3G", [1, 2, 3]),
        ("add 2G, up to 5G", [1, 3, 5]),
        ("times 1.5, up to 2G", [1, 1.5, 2]),
    ],
)
def test_it_grows_up_to_its_bound(rule, sizes):
    growth = parse_increase_rule(rule, "on_out_of_memory", "memory")
    for before, after in itertools.pairwise(sizes):
        assert growth.after(before * GIB) == after * GIB
    if growth.most:
        assert growth.after(sizes[-1] * GIB) is None
