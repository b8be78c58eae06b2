"""Values of other runs as arguments, through real launches on this machine."""

import asyncio
import importlib
import time
from pathlib import Path
from uuid import UUID

import numpy
import pytest
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from slurm_ray_flow import Cancelled, Handle, Handles, InputFailed, OptionError, RunState, slurm_ray_flow
from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.server import connected
from support import BOUND, wait_for

pytestmark = pytest.mark.server


SCRIPT = """
import sys, time
from pathlib import Path
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(ray="never")
def wait(go):
    while go and not Path(go).exists():
        time.sleep(0.05)

if __name__ == "__main__":
    print(wait.submit(wait.submit(sys.argv[1])).run_id, flush=True)
"""


BOXES = """
from shapes import Box
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(ray="never")
def boxed(megabytes):
    return Box(bytes(megabytes << 20))
"""


class TooLargeError(Exception):
    pass


@pytest.fixture
def make(server):
    @slurm_ray_flow(ray="never")
    def make(number, go=""):
        while go and not Path(go).exists():
            time.sleep(0.05)
        if number > 100:
            raise TooLargeError(number)
        return number

    return make


@pytest.fixture
def total(server):
    @slurm_ray_flow(ray="never")
    def total(*numbers, **named):
        flat = []
        for one in (*numbers, *named.values()):
            values = one.values() if isinstance(one, dict) else one
            flat += values if isinstance(one, (list, tuple, set, dict)) else [one]
        return sum(flat)

    return total


@pytest.fixture
def zeros(server):
    @slurm_ray_flow(ray="never")
    def zeros(megabytes, fill=0):
        return numpy.full(megabytes << 20, fill, numpy.uint8)

    return zeros


@pytest.fixture
def about(server):
    @slurm_ray_flow(ray="never")
    def about(array, again=None):
        array[0] += 1  # it may be changed
        return int(array.sum()), again is None or again is array

    return about


def payload(run_id):
    """The size of the arguments in a run's folder, and the values beside them."""
    folder = Path(store.find_record(run_id).paths.folder)
    return (folder / "arguments.dill").stat().st_size, sorted((folder / "values").glob("*"))


def graph(api, run_id):
    return {node["id"]: node for _, node in api.get(f"/flow_runs/{run_id}/graph-v2")["nodes"]}


def test_a_run_waits_for_those_whose_values_it_has_as_arguments(make, total, tmp_path, api):
    """Submit comes at once, the wait is shown, and Prefect has the edge."""
    go = tmp_path / "go"
    slow, quick = make.submit(40, str(go)), make.submit(2)
    handle = total.submit(slow, [quick, 1], named={"a": quick})
    wait_for(lambda: store.find_record(handle.run_id).waiting)
    assert handle.status() is RunState.WAITING
    assert slow.run_id[:8] in store.find_record(handle.run_id).waiting
    assert not go.exists()
    go.touch()
    assert handle.result(BOUND) == 40 + 2 + 1 + 2
    assert handle.status() is RunState.SUCCEEDED
    wait_for(lambda: len(graph(api, handle.run_id)) >= 9)
    nodes = graph(api, handle.run_id)
    waits = [node for node in nodes.values() if slow.run_id[:8] in node["label"]]
    assert [nodes[child["id"]]["label"] for child in waits[0]["children"]].count("start_ray") == 1
    inputs = api.get(f"/task_runs/{waits[0]['id']}")["task_inputs"]
    assert [(one["input_type"], one["id"]) for one in inputs["of"]] == [("flow_run", slow.run_id)]


def test_handles_of_a_map_each_for_a_call_and_all_for_one(make, total):
    first = make.map([1, 2, 3])
    second = total.map(first, [10, 20, 30])
    assert second.results(BOUND) == [11, 22, 33]
    assert total(second, named=Handles.attach(first.map_id)) == 66 + 6
    assert total(Handle.attach(second[0].run_id)) == 11


def test_a_flow_run_that_prefect_starts_again_has_the_same_values(make, total, api, server):
    producer = make.submit(3)
    handle = total.submit(producer, [4])
    assert handle.result(BOUND) == 7
    again = {"type": "SCHEDULED", "name": "AwaitingRetry"}
    wait_for(lambda: api.get(f"/flow_runs/{handle.run_id}")["state_type"] == "COMPLETED")
    api.post(f"/flow_runs/{handle.run_id}/set_state", {"state": again, "force": True})
    with connected(server), get_client(sync_client=True) as client:
        assert run_flow(total, flow_run=client.read_flow_run(UUID(handle.run_id))) == 7
    assert store.find_record(handle.run_id).attempt == f"{handle.run_id}.2"


def test_an_async_function_and_a_call_that_waits_itself(make, server):
    @slurm_ray_flow(ray="never")
    async def doubled(number):
        return 2 * number

    assert asyncio.run(doubled(make.submit(4))) == 8
    assert doubled.submit(doubled.submit(make.submit(4))).result(BOUND) == 16


@pytest.mark.usefixtures("engine")
def test_a_campaign_is_the_list_of_its_values_and_takes_values_of_runs(make, total):
    campaign = make.campaign([1, 2, 3])
    assert total(campaign, [4]) == 10
    assert list(make.campaign(make.map([5, 6])).results()) == [5, 6]
    assert list(total.campaign([campaign, make.submit(7)], same={"named": make.submit(10)}).results()) == [16, 17]
    with pytest.raises(InputFailed, match="run ") as caught:
        total.campaign([1, make.submit(103)])
    assert isinstance(caught.value.__cause__, TooLargeError)
    with pytest.raises(OptionError, match="campaign"):
        total.map(campaign)


def test_a_process_that_ends_says_what_it_never_submitted(script, tmp_path):
    ended = script(SCRIPT, tmp_path / "go")
    assert ended.returncode == 0, ended.stderr
    handle = Handle.attach(ended.stdout.strip())
    assert f"run {handle.run_id[:8]} was not submitted: it was waiting for " in ended.stderr
    (tmp_path / "go").touch()
    assert handle.status() is RunState.LOST


def test_a_failed_producer_fails_what_needs_its_value(make, total, tmp_path, api):
    """Its own exception is the cause. What else it needs is not waited for, and nothing of it is submitted."""
    bad, slow = make.submit(101), make.submit(1, str(tmp_path / "go"))
    handle = total.submit(slow, bad)
    with pytest.raises(InputFailed, match=bad.run_id[:8]) as caught:
        handle.result(BOUND)
    assert isinstance(caught.value.__cause__, TooLargeError)
    assert not slow.done()
    (tmp_path / "go").touch()
    assert not Path(store.find_record(handle.run_id).paths.folder).exists()
    wait_for(lambda: api.get(f"/flow_runs/{handle.run_id}")["state_type"] == "FAILED")
    assert bad.run_id[:8] in api.get(f"/flow_runs/{handle.run_id}")["state"]["message"]
    with pytest.raises(InputFailed, match="TooLargeError"):
        Handle.attach(handle.run_id).result()
    with pytest.raises(InputFailed):
        total.submit(handle).result(BOUND)
    values = total.map(make.map([1, 102, 3])).results(BOUND, return_exceptions=True)
    assert (values[0], values[2]) == (1, 3)
    assert isinstance(values[1].__cause__, TooLargeError)


def test_a_cancel_ends_the_wait_and_not_what_is_waited_for(make, total, tmp_path):
    go = tmp_path / "go"
    slow = make.submit(1, str(go))
    handle = total.submit(slow)
    assert handle.cancel() is True
    with pytest.raises(Cancelled):
        handle.result(BOUND)
    assert handle.status() is RunState.CANCELLED
    assert not slow.done()
    waiting = total.map([slow, slow])
    wait_for(lambda: waiting[1].status() is RunState.WAITING and waiting[1].run_id)
    assert waiting.cancel() == 2
    go.touch()
    assert slow.result(BOUND) == 1


def test_a_large_value_stays_where_it_is(zeros, about):
    producer = zeros.submit(8, 1)
    assert producer.result(BOUND).sum() == 8 << 20
    handle = about.submit(producer, again=producer)
    assert handle.result(BOUND) == ((8 << 20) + 1, True)
    sent, [value] = payload(handle.run_id)
    assert sent < 10_000
    assert value.stat().st_nlink == 2
    assert value.samefile(store.find_record(producer.run_id).paths.outcome)
    attached = about.submit(Handle.attach(producer.run_id))
    assert attached.result(BOUND) == ((8 << 20) + 1, True)
    assert payload(attached.run_id)[0] < 10_000
    small = about.submit(zeros.submit(1, 2))
    assert small.result(BOUND)[0] == (2 << 20) + 1


def test_a_very_large_value_comes_home_when_somebody_asks_for_it(zeros, about):
    producer = zeros.submit(20, 1)
    handle = about.submit(producer)
    assert handle.result(BOUND) == ((20 << 20) + 1, True)
    assert not producer._future.result().is_here
    value = producer.result(BOUND)
    assert value.sum() == 20 << 20
    assert producer.result() is value
    there = zeros.map([20], fill=2)
    assert there.results(BOUND)[0].sum() == 40 << 20


def test_the_modules_of_a_values_types_are_sent_though_home_has_not_seen_it(server, tmp_path, monkeypatch):
    (tmp_path / "shapes.py").write_text("class Box:\n    def __init__(self, data): self.data = data\n")
    (tmp_path / "boxes.py").write_text(BOXES)
    monkeypatch.syspath_prepend(str(tmp_path))

    @slurm_ray_flow(ray="never")
    def size(box):
        return len(box.data)

    name = "".join(["box", "es"])  # the scan of this file is not to find it
    assert size.submit(importlib.import_module(name).boxed.submit(18)).result(BOUND) == 18 << 20


def test_a_value_that_is_gone_there_is_sent_from_home(zeros, about):
    producer = zeros.submit(4, 1)
    producer.result(BOUND)
    Path(store.find_record(producer.run_id).paths.outcome).unlink()
    handle = about.submit(producer)
    assert handle.result(BOUND)[0] == (4 << 20) + 1
    assert payload(handle.run_id)[0] > 4 << 20
    with pytest.raises(InputFailed, match=producer.run_id[:8]):
        about(Handle.attach(producer.run_id))


def test_a_damaged_value_is_no_argument(zeros, about):
    producer = zeros.submit(4, 1)
    producer.result(BOUND)
    with open(store.find_record(producer.run_id).paths.outcome, "r+b") as file:
        file.seek(1 << 20)
        file.write(b"damaged")
    with pytest.raises(Exception, match="digest"):
        about(producer)
