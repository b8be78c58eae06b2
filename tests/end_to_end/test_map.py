"""Many calls of one function, through real launches on this machine."""

import asyncio
import os
import pickle
import signal
import time
from pathlib import Path

import pytest

from slurm_ray_flow import (
    Campaign,
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
from slurm_ray_flow.blocks.grid_engine import end_engine, read_engine_state
from slurm_ray_flow.blocks.map_record import find_map, kept_folder
from slurm_ray_flow.core.errors import GridError, UnknownCampaignError
from slurm_ray_flow.core.grid.model import CampaignState
from slurm_ray_flow.grid.client import GridClient
from slurm_ray_flow.interface.map_progress import FIRST_PAUSE
from support import wait_for

pytestmark = pytest.mark.server

SCRIPT = """
import os, sys, time
from pathlib import Path
from slurm_ray_flow import slurm_ray_flow

FACTOR = 10

@slurm_ray_flow(ray="never")
def wait(number, go):
    with open(f"{go}.{number}", "a") as begun:
        print(os.environ.get("SRF_RUN_ID"), file=begun)
    while not Path(go).exists() and not Path(f"{go}.go{number}").exists():
        time.sleep(0.05)
    return number * FACTOR

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


def begins(go):
    """How often each call has begun."""
    return {number: len(Path(f"{go}.{number}").read_text().splitlines()) for number in begun(go)}


def test_what_a_killed_process_had_not_begun_is_begun_by_another_one(script, tmp_path):
    """Its script has changed since: calls run what the first one ran. No call begins twice."""
    go = tmp_path / "go"
    process = script(SCRIPT, go, "results", wait=False)
    wait_for(lambda: begun(go) == [0, 1])
    process.kill()
    process.communicate()
    (tmp_path / "script.py").write_text("this is no Python")
    handles = Handles.attach()
    assert handles.not_begun == [2, 3, 4]
    assert [handle.status() for handle in handles] == [RunState.RUNNING] * 2 + [RunState.WAITING] * 3
    (tmp_path / "go.go1").touch()
    wait_for(lambda: begun(go) == [0, 1, 2], 120)
    assert Handles.attach().not_begun == [3, 4]
    go.touch()
    assert handles.results(180) == [0, 10, 20, 30, 40]
    assert begins(go) == dict.fromkeys(range(5), 1)
    assert list(handles[4].logs()) == []
    wait_for(lambda: row_of(handles).state is CampaignState.SUCCEEDED)
    assert (row_of(handles).kind, row_of(handles).succeeded) == ("map", 5)
    assert not kept_folder(handles.map_id).exists()


def row_of(handles):
    return GridClient().campaign(handles.map_id)


def test_a_cancel_from_elsewhere_ends_the_calls_of_a_map_whose_processes_and_engine_were_killed(script, tmp_path):
    go = tmp_path / "go"
    process = script(SCRIPT, go, "results", wait=False)
    wait_for(lambda: begun(go) == [0, 1])
    process.kill()
    process.communicate()
    map_id = Handles.attach().map_id
    wait_for(lambda: find_map(map_id).is_engines, 120)
    for second in (find_map(map_id), read_engine_state()):
        os.kill(second.pid, signal.SIGKILL)
    (tmp_path / "go.go0").touch()
    wait_for(lambda: begun(go) == [0, 1, 2], 120)
    with pytest.raises(UnknownCampaignError, match="Handles"):
        Campaign.attach(map_id)
    items = GridClient().items(map_id, 0, 9)
    assert [item["state"] for item in items[1:]] == ["running", "running", "waiting", "waiting"]
    with pytest.raises(GridError, match="map"):
        GridClient().change(map_id, "pause")

    handles = Handles.attach(map_id)
    assert handles.cancel() == 2
    wait_for(lambda: [handle.status() for handle in handles] == [RunState.SUCCEEDED] + [RunState.CANCELLED] * 4)
    go.touch()
    values = handles.results(60, return_exceptions=True)
    assert [type(value) for value in values] == [int] + [Cancelled] * 4
    wait_for(lambda: row_of(handles).ended == 5)
    assert row_of(handles).state is CampaignState.CANCELLED
    wait_for(lambda: not find_map(map_id).alive)
    assert begins(go) == {0: 1, 1: 1, 2: 1}
    GridClient().purge(map_id)


def test_a_script_that_ends_early_leaves_the_rest_to_the_engine(script, tmp_path):
    go = tmp_path / "go"
    done = script(SCRIPT, go, "leave")
    assert done.returncode == 0
    assert "2 to 4" in done.stderr
    handles = Handles.attach()
    assert handles.map_id[:8] in done.stderr
    go.touch()
    assert handles.results(180) == [0, 10, 20, 30, 40]
    assert begins(go) == dict.fromkeys(range(5), 1)


def test_without_an_engine_a_map_says_that_its_calls_end_with_it(script, monkeypatch, tmp_path):
    end_engine()
    monkeypatch.setenv("SRF_GRID_DATABASE_URL", "mysql://nowhere/grid")
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    go = tmp_path / "go"
    process = script(SCRIPT, go, "results", wait=False)
    said = []
    wait_for(lambda: said.append(process.stderr.readline()) or "never will" in said[-1], 120)
    (tmp_path / "go.go0").touch()
    wait_for(lambda: begun(go) == [0, 1, 2])
    process.kill()
    process.communicate()
    go.touch()
    values = Handles.attach().results(120, return_exceptions=True)
    assert (values[:3], {type(value) for value in values[3:]}) == ([0, 10, 20], {Lost})
    assert "(4)" in str(values[4])


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
