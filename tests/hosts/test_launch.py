"""Functions on a host that is reached by SSH, through the whole launch: what the caller gets."""

import asyncio
import json

import pytest

from slurm_ray_flow import Cancelled, OutOfMemory, RunState, TimeLimit
from support import BOUND, wait_for

pytestmark = pytest.mark.server


@pytest.fixture
def held(launches):
    import held

    yield held


def test_a_value_comes_home_with_what_was_printed(launches, held, capfd):
    folder = launches.folder()
    assert held.note(folder, "one") == "<one>"
    assert "says one\n" in capfd.readouterr().out
    assert launches.starts(folder) == ["one"]


def test_an_async_function_is_awaited(held):
    assert asyncio.run(held.later(1)) == 2


def test_the_functions_own_exception_is_raised(held):
    import given

    with pytest.raises(given.GivenError) as caught:
        held.fail()
    assert caught.value.args == (7,)
    assert "in fail" in "".join(caught.value.__notes__)


def test_fifty_megabytes_go_there_and_come_back(held):
    value = bytes(range(256)) * 195_313
    assert held.give_back(value) == value


def test_a_large_value_stays_there_for_the_next_run_and_goes_to_another_cluster(launches, held, hosts_lab):
    """Nothing of it goes over the road home and back before somebody asks for it."""
    value = bytes(range(256)) * 80_000
    with hosts_lab.road("desi") as road:
        give_back = held.give_back.with_options(cluster=launches.saved_by(road), ray="never")
        producer = give_back.submit(value)
        wait_for(producer.done, BOUND)
        road.counts(reset=True)
        handle = give_back.submit([producer])
        wait_for(handle.done, BOUND)
        passed = road.counts()
        assert passed.sent + passed.received < 2_000_000
        assert handle.result(BOUND) == [value]
        assert road.counts().received > len(value)
        runs = launches.host.path(f"{launches.root}/runs")
        [kept] = (runs / handle.run_id / "values").iterdir()
        assert kept.samefile(runs / producer.run_id / "outcome.dill")
        assert held.give_back.with_options(cluster="local", ray="never")({"from": producer}) == {"from": value}


def test_too_much_time(held):
    with pytest.raises(TimeLimit):
        held.too_long()


def test_too_much_memory(held):
    with pytest.raises(OutOfMemory, match="MiB"):
        held.eat()


def test_no_more_processors_than_it_asked_for(held):
    assert held.processors() == 1


def test_a_run_is_followed_from_other_processes(launches, held):
    folder = launches.folder()
    script = launches.script("submit", folder)
    run_id = script.communicate(timeout=180)[0].strip()
    following, attached = launches.srf("logs", run_id, "--follow"), launches.srf("attach", run_id, "--json")
    assert following.stdout.readline() == "waits\n"
    launches.go(folder)
    assert following.communicate(timeout=180)[0] == "gone on\n"
    assert json.loads(attached.communicate(timeout=180)[0])["value"] == 42
    assert len(launches.starts(folder)) == 1
    launches.over(run_id)


@pytest.mark.parametrize("how", ["handle", "srf"])
def test_a_cancelled_run_is_gone(launches, held, how):
    folder = launches.folder()
    handle = held.wait.submit(folder)
    wait_for(lambda: launches.starts(folder))
    if how == "handle":
        assert handle.cancel() is True
    else:
        said, _ = launches.srf("cancel", handle.run_id).communicate(timeout=180)
        assert "is cancelled" in said
    launches.over(handle.run_id)
    with pytest.raises(Cancelled):
        handle.result(180)
    assert handle.status() is RunState.CANCELLED


def test_what_was_lost_is_started_again(launches, held):
    folder = launches.folder()
    assert held.die_once(folder) == "again"
    assert len(launches.starts(folder)) == 2


def test_one_log_in_for_all_that_a_process_does(launches, hosts_lab):
    with hosts_lab.road("desi") as road:
        cluster = launches.saved_by(road)
        said, _ = launches.script("twice", launches.folder(), cluster).communicate(timeout=180)
        assert said.endswith("['<one>', '<two>']\n")
        assert road.counts().connections == 1


def test_background_processes_of_a_function_end_with_it(launches, held):
    def background():
        return ["sleep", "3071"] in launches.host.processes().values()

    run = launches.submitted(held.wait, "3071")
    assert background()
    launches.go(run.folder)
    assert run.handle.result(180) == 42
    launches.over(run.id)
    assert not background()
