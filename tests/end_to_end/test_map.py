"""Many calls of one function, through real launches on this machine."""

import asyncio
import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from slurm_ray_flow import (
    Cancelled,
    Handle,
    Handles,
    Lost,
    OptionError,
    PayloadError,
    RunState,
    as_completed,
    slurm_ray_flow,
)
from slurm_ray_flow.blocks import store
from slurm_ray_flow.interface.map_state import FIRST_PAUSE
from support import wait_for

pytestmark = pytest.mark.server

SCRIPT = """
import os, sys, time
from pathlib import Path
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(ray="never")
def wait(number, go):
    Path(f"{go}.{number}").write_text(str(os.getpid()))
    while not Path(go).exists():
        time.sleep(0.05)
    return number

if __name__ == "__main__":
    handles = wait.map(range(5), max_parallel=2, go=sys.argv[1])
    if sys.argv[2] == "leave":
        while not Path(f"{sys.argv[1]}.1").exists():
            time.sleep(0.05)
    elif sys.argv[2] == "other":
        time.sleep(600)
    else:
        print(handles.results(), flush=True)
"""


@pytest.fixture
def wait(server):
    @slurm_ray_flow(ray="never")
    def wait(number, go):
        Path(f"{go}.{number}").write_text(str(os.getpid()))
        while not Path(go).exists() and not Path(f"{go}.go{number}").exists():
            time.sleep(0.05)
        return number

    return wait


def begun(go):
    return sorted(int(path.suffix[1:]) for path in go.parent.glob(f"{go.name}.[0-9]*"))


def test_values_come_in_the_order_of_the_arguments(work):
    handles = work.triple.map(range(5), max_parallel=3)
    assert handles.results(timeout=180) == [0, 3, 6, 9, 12]
    assert [handle.status() for handle in handles] == [RunState.SUCCEEDED] * 5
    assert len({handle.run_id for handle in handles}) == 5
    assert Handle.attach(handles[2].run_id).result() == 6
    assert list(handles[2].logs()) == ["tripling 2"]
    again = Handles.attach(handles.map_id[:13])
    assert again.results() == [0, 3, 6, 9, 12]
    assert pickle.loads(pickle.dumps(handles)).map_id == handles.map_id
    assert pickle.loads(pickle.dumps(handles[1])).run_id == handles[1].run_id


def test_several_iterables_end_with_the_shortest_and_a_name_is_for_all(server):
    @slurm_ray_flow(ray="never")
    async def said(first, second, third="c"):
        return f"{first}{second}{third}"

    assert said.map("ab", [1, 2, 3], third="!").results(180) == ["a1!", "b2!"]
    assert list(said.map([])) == []
    with pytest.raises(TypeError, match="fourth"):
        said.map("ab", [1, 2], fourth=3)
    with pytest.raises(OptionError, match="max_parallel"):
        said.map("ab", [1, 2], max_parallel=0)


def iter_once():
    yield 1


def test_a_bad_call_costs_the_others_nothing(work):
    handles = work.give_back.map([1, iter_once(), 3, iter_once(), 5])
    values = handles.results(180, return_exceptions=True)
    assert values[::2] == [1, 3, 5]
    assert isinstance(values[1], PayloadError)
    assert isinstance(values[3], PayloadError)
    assert handles[1].status() is RunState.FAILED
    with pytest.raises(PayloadError) as caught:
        handles.results()
    assert "1, 3" in caught.value.__notes__[-1]
    with pytest.raises(ZeroDivisionError):
        slurm_ray_flow(lambda number: 1 / number).map([1, 0, 2]).results(180)


def test_what_all_calls_lack_is_asked_once(work):
    values = work.triple.with_options(cluster="locl").map(range(20)).results(180, return_exceptions=True)
    assert {type(value) for value in values} == {OptionError}
    assert len(set(map(id, values))) == 1


def test_so_many_at_a_time_and_whichever_ends_first_comes_first(wait, tmp_path):
    go = tmp_path / "go"
    handles = wait.map(range(5), max_parallel=2, go=str(go))
    wait_for(lambda: begun(go) == [0, 1])
    assert handles[2].status() is RunState.WAITING
    assert not handles[2].run_id
    assert Handles.attach().not_begun == handles.not_begun == [2, 3, 4]
    with pytest.raises(TimeoutError):
        next(as_completed(handles, timeout=0.1))
    ended = as_completed(handles, timeout=180)
    (tmp_path / "go.go1").touch()
    assert next(ended).result() == 1
    wait_for(lambda: begun(go) == [0, 1, 2])
    assert handles[2].status() is RunState.RUNNING
    elsewhere = Handles.attach(handles.map_id)
    go.touch()
    assert sorted(handle.result() for handle in ended) == [0, 2, 3, 4]
    assert elsewhere.results(180) == [0, 1, 2, 3, 4]
    assert [handle.result() for handle in as_completed([elsewhere[3], Handle(handles[0].run_id)])].count(0) == 1


def test_a_cancel_of_one_and_of_all(wait, tmp_path):
    go = tmp_path / "go"
    handles = wait.map(range(6), max_parallel=2, go=str(go))
    wait_for(lambda: begun(go) == [0, 1])
    assert handles[2].cancel() is True
    assert handles[0].cancel() is True
    assert handles[0].cancel() is False
    wait_for(lambda: begun(go) == [0, 1, 3])
    assert handles.cancel() == 2
    assert handles.done()
    assert begun(go) == [0, 1, 3]
    assert {handle.status() for handle in handles} == {RunState.CANCELLED}
    values = handles.results(return_exceptions=True)
    assert {type(value) for value in values} == {Cancelled}
    for number in begun(go):
        assert not Path(f"/proc/{(tmp_path / f'go.{number}').read_text()}").exists()


def states(api, handles):
    return {api.get(f"/flow_runs/{handle.run_id}")["state_type"] for handle in handles if handle.run_id}


def test_ctrl_c_anywhere_in_a_script_cancels_what_has_begun_and_begins_no_more(script, api, tmp_path):
    """While it waits for calls, test_notebook.py interrupts it."""
    go = tmp_path / "go"
    process = script(SCRIPT, go, "other", wait=False)
    wait_for(lambda: begun(go) == [0, 1])
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode == -signal.SIGINT
    assert "Logging error" not in stderr
    handles = Handles.attach()
    assert begun(go) == [0, 1]
    assert [handle.status() for handle in handles[:2]] == [RunState.CANCELLED] * 2
    assert [bool(handle.run_id) for handle in handles] == [True, True, False, False, False]
    wait_for(lambda: states(api, handles) == {"CANCELLED"})


def test_who_is_killed_leaves_what_has_begun_and_says_what_has_not(script, tmp_path):
    go = tmp_path / "go"
    process = script(SCRIPT, go, "results", wait=False)
    wait_for(lambda: begun(go) == [0, 1])
    process.kill()
    process.communicate()
    handles = Handles.attach()
    assert handles.not_begun == [2, 3, 4]
    assert [handle.status() for handle in handles[:2]] == [RunState.RUNNING] * 2
    go.touch()
    values = handles.results(180, return_exceptions=True)
    assert values[:2] == [0, 1]
    assert {type(value) for value in values[2:]} == {Lost}
    assert "(4)" in str(values[4])


def test_a_script_that_ends_early_says_what_was_not_begun(script, tmp_path):
    go = tmp_path / "go"
    done = script(SCRIPT, go, "leave")
    assert done.returncode == 0
    assert "2 to 4" in done.stderr
    handles = Handles.attach()
    assert handles.map_id[:8] in done.stderr
    go.touch()
    assert [handle.result(180) for handle in handles[:2]] == [0, 1]
    assert begun(go) == [0, 1]


def test_the_terminal_has_one_line_for_all(work, monkeypatch, capsys):
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    began = time.monotonic()
    handles = work.triple.map(range(4), max_parallel=2)
    assert [handle.result() for handle in handles] == [0, 3, 6, 9]
    took = time.monotonic() - began
    first, *between, last = capsys.readouterr().err.splitlines()
    assert "4 calls, 2 at a time" in first
    assert all("of 4 done" in line for line in between), between
    assert sum(FIRST_PAUSE * 1.5**number for number in range(len(between))) <= took, between
    assert "4 of 4 done" in last


def test_an_async_caller_waits_in_a_thread(work):
    handles = work.triple.map([1, 2])
    assert asyncio.run(asyncio.to_thread(handles.results, 120)) == [3, 6]
    assert {store.find_record(handle.run_id).ended for handle in handles} == {"succeeded"}
