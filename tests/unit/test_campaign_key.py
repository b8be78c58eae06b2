"""The key by which a value of an earlier campaign is found."""

import pytest

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.interface.campaign_new import key_of


def simulate(seed, power=2): ...


@pytest.mark.parametrize(
    ("args", "kwargs", "key", "expected"),
    [
        ((3,), {}, "seed", "3"),
        (("3",), {}, "seed", '"3"'),
        ((), {"seed": 1, "power": 3}, "power", "3"),
        (({"day": "monday", "n": 1},), {}, "day", '"monday"'),
        (({"b": 1, "a": 2},), {}, "seed", '{"a": 2, "b": 1}'),
    ],
)
def test_a_key_is_an_argument_or_an_entry_of_the_first_one(args, kwargs, key, expected):
    assert key_of(simulate, args, kwargs, key) == expected


@pytest.mark.parametrize(("args", "key"), [((3,), "nothing"), (({"day": 1},), "night"), ((), "seed")])
def test_a_key_that_is_not_there_is_told(args, key):
    with pytest.raises(OptionError, match=key):
        key_of(simulate, args, {}, key)
