"""Runs that come again on Slurm with more or as they were, and what one is told that they used."""

import pytest

from slurm_ray_flow import OutOfMemory
from slurm_ray_flow.blocks import store
from support import BOUND

pytestmark = pytest.mark.server


def newest():
    return next(iter(store.records()))


def test_the_next_job_asks_for_more_memory(jobs):
    import more

    assert more.large() == 250
    record = newest()
    assert record.again == "OutOfMemory: out of memory at 150M; tries again with 450M (1 of 2)"
    assert len({job["MinMemoryNode"] for job in jobs.jobs(record.run_id)}) == 2
    assert record.usage["memory"] == 450 << 20
    jobs.over()


def test_more_than_a_node_has_is_not_submitted(jobs):
    import more

    with pytest.raises(OutOfMemory) as caught:
        more.large.with_options(on_out_of_memory="add 900T")()
    assert "one more try was refused" in caught.value.advice
    assert len(jobs.jobs(newest().run_id)) == 1
    jobs.over()


def test_who_gives_way_is_told_saves_and_goes_on_from_there(jobs):
    import more

    run = jobs.begun(more.saves_when_told)
    jobs.slurm.submit("frank", "sleep 1", "--nodes=2", "--exclusive", "--output=/dev/null")
    reason, left = run.handle.result(2 * BOUND).split()
    assert reason == "preempted"
    assert 0 < float(left) <= 60
    assert len(jobs.jobs(run.id)) == 2
    jobs.over()


@pytest.mark.ray
def test_what_was_used_is_told_of_each_node(jobs):
    import busy

    busy.busy_on_both(8.0)
    usage = newest().usage
    assert {node["host"] for node in usage["nodes"]} == set(jobs.slurm.nodes)
    assert usage["cpus"] == 2
    assert sum(node["cpu_seconds"] for node in usage["nodes"]) == pytest.approx(usage["cpu_seconds"], abs=0.1)
    assert usage["cpu_seconds"] > 7
    assert usage["memory_peak"] > 150 << 20  # Ray's own processes, which Slurm counts, are in it
    jobs.over()


@pytest.mark.ray
@pytest.mark.parametrize("here", [True, False], ids=["beside the function", "on the other node"])
def test_a_task_of_ray_that_takes_too_much_memory_is_told_as_that(jobs, here):
    import busy

    with pytest.raises(OutOfMemory):
        busy.eats(here)
    jobs.over()


@pytest.mark.ray
def test_memory_that_is_too_small_for_ray_itself_is_told_as_that(jobs):
    import busy

    with pytest.raises(OutOfMemory, match="Ray"):
        busy.too_small_for_ray()
    jobs.over()
