import pytest

from slurm_ray_flow import OptionError
from slurm_ray_flow.core.options import Options


def test_options_are_brought_to_one_form():
    options = Options().but(
        memory="2G", time_limit="1h", keep_warm="5m", include=["a.csv"], env_vars={"B": "2", "A": "1"}
    )
    assert (options.memory, options.time_limit, options.keep_warm) == (2 * 1024**3, 3600, 300)
    assert options.include == ("a.csv",)
    assert options.env_vars == (("A", "1"), ("B", "2"))


@pytest.mark.parametrize(("given", "bytes_"), [("1G", 1024**3), (10, 10), (0, 0), ("0", 0), (None, 0)])
def test_data_of_packages_has_a_limit_that_may_be_nothing(given, bytes_):
    assert Options().but(package_data=given).package_data == bytes_


def test_changed_options_leave_the_others():
    options = Options().but(nodes=3).but(memory="1G")
    assert (options.nodes, options.memory) == (3, 1024**3)


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"memory": 4}, "4 B"),
        ({"memory": "100K"}, "100.0 KiB"),
        ({"keep_warm": "5"}, '"5m"'),
        ({"node": 2}, "'nodes'"),
        ({"gpus": 2}, "'gpus_per_node'"),
        ({"timelimit": "2h"}, "'time_limit'"),
        ({"walltime": "2h"}, "'time_limit'"),
        ({"num_cpus": 2}, "'cpus_per_node'"),
        ({"num_gpus": 2}, "'gpus_per_node'"),
        ({"ntasks": 2}, "'nodes'"),
        ({"env": {}}, "'env_vars'"),
        ({"environment": "isolate"}, "'isolated'"),
        ({"environment": "pakced"}, "'packed'"),
        ({"zebra": "red"}, "the options are"),
    ],
)
def test_a_mistyped_option_gets_the_nearest_one(wrong, hint):
    with pytest.raises(OptionError, match=hint):
        Options().but(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 0},
        {"nodes": 1.0},
        {"nodes": True},
        {"cpus_per_node": -1},
        {"gpus_per_node": "2"},
        {"retries": -1},
        {"resubmit": -1},
        {"retry_on": 3},
        {"retry_on": [int]},
        {"on_out_of_memory": "more"},
        {"on_time_limit": "double memory"},
        {"memory": "many"},
        {"time_limit": "later"},
        {"keep_warm": "long"},
        {"include": "data.csv"},
        {"include": [1]},
        {"package_data": "much"},
        {"package_data": -1},
        {"package_data": True},
        {"env_vars": {"A": 1}},
        {"env_vars": {"A=B": "1"}},
        {"environment": 3},
        {"environment": ""},
        {"cluster": ""},
        {"cluster": 5},
        {"name": "a/b"},
        {"ray": "yes"},
        {"ray": True},
        {"cache": "often"},
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(OptionError, match=name):
        Options().but(**wrong)


def test_secrets_in_env_vars_are_not_shown():
    options = Options().but(env_vars={"TOKEN": "hush"})
    assert "hush" not in repr(options)
    with pytest.raises(OptionError) as caught:
        Options().but(env_vars={"TOKEN": "hush\0"})
    assert "hush" not in str(caught.value)
