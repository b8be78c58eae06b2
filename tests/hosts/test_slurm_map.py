"""Many calls of one function on Slurm, each a job of its own."""

import json
import signal

import pytest

from slurm_ray_flow import Cancelled, Handles
from support import BOUND, wait_for

pytestmark = pytest.mark.server


def test_calls_are_jobs_on_all_nodes_and_a_bad_one_costs_the_others_nothing(jobs):
    """Then another map is interrupted, and its script is gone: nothing of it is left, nor begins."""
    import calls

    handles = jobs.on(calls.half).map(range(12), max_parallel=4, folder=jobs.folder())
    values = handles.results(BOUND, return_exceptions=True)
    assert isinstance(values[3], calls.OddError)
    good = [value for index, value in enumerate(values) if index != 3]
    assert [half for half, _, _ in good] == [index // 2 for index in range(12) if index != 3]
    assert {node for _, node, _ in good} == {"c1", "c2"}
    assert len({job for _, _, job in good}) == 11
    jobs.over()

    folder = jobs.folder()
    script = jobs.script(jobs.name, folder, file="calls.py")
    wait_for(lambda: len(jobs.starts(folder)) == 4)
    script.send_signal(signal.SIGINT)
    said = json.loads(script.communicate(timeout=BOUND)[0])
    jobs.over()
    handles = Handles.attach(said)
    assert len(jobs.starts(folder)) == 4
    outcomes = handles.results(BOUND, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {Cancelled}
    assert handles.not_begun == []


def test_a_call_takes_the_value_of_a_job_from_where_it_is(jobs):
    import held

    give_back = jobs.on(held.give_back, ray="never")
    value = bytes(range(256)) * 20_000
    handle = give_back.submit(give_back.submit(value))
    assert handle.result(BOUND) == value
    folder = jobs.host.path(f"{jobs.root}/runs/{handle.run_id}")
    assert (folder / "arguments.dill").stat().st_size < 10_000
    assert len(list((folder / "values").iterdir())) == 1
    jobs.over()
