"""Runs on this machine that are tried again, through the whole launch."""

import json
from pathlib import Path

import pytest

from slurm_ray_flow import Cancelled, Handle, OutOfMemory, Rejected, RunState
from slurm_ray_flow.blocks import store
from support import wait_for

pytestmark = pytest.mark.server


@pytest.fixture
def tries(work, monkeypatch):
    monkeypatch.setenv("SRF_PROGRESS", "plain")
    import tries

    return tries


def newest():
    return next(iter(store.records()))


def logged(api, run_id):
    found = api.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run_id]}}})
    return "\n".join(line["message"] for line in found)


def test_more_memory_after_too_little(tries, capsys, api, srf):
    assert tries.large() == 250
    text = "OutOfMemory: out of memory at 150M; tries again with 450M (1 of 2)"
    assert text in capsys.readouterr().err
    record = newest()
    assert record.attempt == f"{record.run_id}.2"
    assert record.again == text
    wait_for(lambda: text in logged(api, record.run_id))
    [row] = [line for line in srf("runs").stdout.splitlines() if line.startswith(record.run_id[:8])]
    assert "succeeded, try 2" in row
    assert json.loads(record.to_json())["usage"]["memory"] == 450 << 20


def test_what_the_cluster_refuses_ends_as_what_it_ran_out_of(tries):
    with pytest.raises(OutOfMemory, match="150 MiB") as caught:
        tries.large.with_options(on_out_of_memory="add 900T")()
    assert "one more try was refused" in caught.value.advice
    assert isinstance(caught.value.__cause__, Rejected)


def test_more_time_after_too_little_and_the_first_try_left_its_checkpoint(tries, capsys):
    assert tries.slow() == 2
    assert "the time limit passed at 10s; tries again with 50s (1 of 1)" in capsys.readouterr().err


def test_the_functions_own_exception_when_it_is_asked_for(tries, capsys):
    assert tries.shaky(ConnectionResetError) == 3
    err = capsys.readouterr().err
    assert "\nConnectionResetError: try 1; tries again in" in err
    assert "try 2; tries again in" in err
    with pytest.raises(ValueError, match="try 1"):
        tries.shaky(ValueError)


def test_a_lost_try_leaves_its_checkpoint_for_the_next_one(tries):
    assert tries.killed_at_first() == 2
    record = newest()
    assert Handle.attach(record.run_id).result(180) == 2


def test_whoever_attaches_sees_all_tries_and_gets_the_value_of_the_last(tries):
    other = Handle.attach(tries.slow.submit().run_id)
    assert list(other.logs(follow=True)) == ["try 1", "try 2"]
    assert other.result(180) == 2
    assert other.status() is RunState.SUCCEEDED


def test_a_run_may_be_cancelled_between_two_tries(tries):
    handle = tries.shaky.with_options(retries=9).submit(ConnectionResetError, 99)
    wait_for(lambda: "(4 of 9)" in store.find_record(handle.run_id).again)
    assert handle.cancel() is True
    with pytest.raises(Cancelled):
        handle.result(180)
    assert handle.status() is RunState.CANCELLED
    assert "(4 of 9)" in store.find_record(handle.run_id).again


def test_a_warm_cluster_that_was_too_small_is_let_go(tries):
    assert tries.large.with_options(keep_warm="1m")() == 250
    record = newest()
    first, second = (Path(record.root, "runs", name, "events.jsonl") for name in (record.run_id, record.attempt))
    wait_for(lambda: "released" in first.read_text())
    assert "released" not in second.read_text()
    Path(record.paths.cancel).touch()
    wait_for(lambda: "released" in second.read_text())
