"""What is said of a run's use."""

import pytest

from slurm_ray_flow.core.efficiency import (
    ResourceUse,
    killed_text,
    recommended_memory,
    recommended_time,
    resources_used,
)
from slurm_ray_flow.core.options import Options

MIB, GIB = 1024**2, 1024**3


def usage(**changes):
    node = {"host": "c1"}
    return {
        "wall": 100.0, "cpu_seconds": 310.0, "cpus": 4, "memory_peak": 1.2 * GIB, "memory": 8 * GIB, "gpus": 0,
        "nodes": [node], **changes,
    }  # fmt: skip


def test_the_line_says_what_was_used_and_what_to_ask_for():
    found = resources_used(usage(), Options().but(cpus_per_node=4, memory="8G"))
    assert found.text == "used 3.1 of 4 CPUs (78%), 1.2 GiB of 8.0 GiB (15%); next time: memory='1.5G'"
    assert "| memory | 1.2 GiB | 8.0 GiB | 15% | memory='1.5G' |" in found.table


def test_idle_processors_are_told():
    found = resources_used(usage(cpu_seconds=90.0), Options().but(cpus_per_node=4))
    assert found.text == "used 0.9 of 4 CPUs (22%); next time: cpus_per_node=2"


def test_a_run_that_used_well_gets_no_advice():
    options = Options().but(cpus_per_node=4, memory="1.5G", time_limit="15m")
    found = resources_used(usage(), options)
    assert "next time" not in found.text
    assert found.text.endswith("1 min 40 s of 15 min 0 s (11%)")


def test_a_run_that_came_near_its_limit_is_told_to_ask_for_more():
    assert "next time: memory='2G'" in resources_used(usage(memory_peak=1.4 * GIB), Options().but(memory="1.5G")).text


def test_several_nodes():
    both = usage(cpu_seconds=620.0, cpus=8, nodes=[{}, {}])
    found = resources_used(both, Options().but(cpus_per_node=4, nodes=2))
    assert found.text == "each of 2 nodes used 3.1 of 4 CPUs (78%)"


def test_cards_and_time():
    found = resources_used(usage(gpus=2, gpu_seconds=50.0), Options().but(gpus_per_node=2, time_limit="2h"))
    assert found.text == "used 0.5 of 2 GPUs (25%), 1 min 40 s of 2 h 0 min (1%); next time: time_limit='10m'"
    assert resources_used(usage(gpus=2), Options().but(gpus_per_node=2)) is None


@pytest.mark.parametrize(
    ("found", "options"),
    [
        (usage(), {}),
        (usage(wall=9.0), {"memory": "8G"}),
        (usage(), {"time_limit": "3m"}),
        (None, {"memory": "8G"}),
        ("many", {"memory": "8G"}),
        (usage(wall="long"), {"memory": "8G"}),
        (usage(cpu_seconds=float("nan")), {"memory": "8G"}),
        (usage(memory_peak=None), {"memory": "8G"}),
        (usage(memory_peak=-1), {"memory": "8G"}),
        ({}, {"memory": "8G"}),
    ],
)
def test_there_may_be_nothing_to_say(found, options):
    assert resources_used(found, Options().but(**options)) is None


@pytest.mark.parametrize("peak", [0, 1, 100 * MIB, 250 * MIB, GIB, 1.7 * GIB, 13.3 * GIB, 800 * GIB])
def test_memory_to_ask_for_is_never_less_than_what_was_used(peak):
    wanted = recommended_memory(peak)
    assert wanted >= 1.25 * peak
    assert wanted <= max(1.25 * 1.34 * peak, 256 * MIB)


@pytest.mark.parametrize("seconds", [1, 500, 4000, 30_000, 400_000])
def test_time_to_ask_for_is_never_less_than_what_was_used(seconds):
    assert recommended_time(seconds) >= 1.5 * seconds


def test_what_an_old_program_says_is_enough():
    assert ResourceUse.from_event({"wall": 1, "cpu_seconds": 1, "cpus": 1, "memory_peak": 1, "more": {}}).nodes == 1


def test_processes_that_the_kernel_ended_are_told_where_they_were_the_calls_for_certain():
    assert "a process" in killed_text(usage(memory_kills=1, own_kills=1))
    assert "2 processes" in killed_text(usage(memory_kills=2, own_kills=2))
    for kills in ({"memory_kills": 3}, {"own_kills": 0}, {"own_kills": "many"}):
        assert killed_text(usage(**kills)) == ""
