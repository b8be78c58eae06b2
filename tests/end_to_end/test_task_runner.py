"""Prefect's own tasks in pilots: what Prefect promises of task runners, on a real server, engine and pilot."""

import os
import signal
import threading
import uuid

import pytest
from prefect import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterTaskRunId
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import State

from slurm_ray_flow import Campaign, CampaignState, ClusterTaskRunner, Crashed, OptionError, PayloadError, on_the_server
from slurm_ray_flow.grid.client import GridClient
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine")]


@pytest.fixture
def tasks(work):
    """The user's module. All flows but one have one campaign, whose pilot waits for the next of them."""
    import in_pilots

    with on_the_server():
        yield in_pilots


def in_flow(tasks, function):
    """What a function gives that a flow calls."""
    kept = []
    tasks.call(lambda: kept.append(function()))
    return kept[0]


def test_futures_as_arguments_map_and_wait_for(tasks):
    def flow():
        first = tasks.add.submit(1, 2)
        then = tasks.add.submit(first, 10)
        nested = tasks.root.map([[4.0, 9.0][0], 25.0], wait_for=[then])
        pids = {future.result() for future in [tasks.process.submit(), tasks.process.submit(wait_for_nothing=first)]}
        return then, then.result(), nested.result(), pids

    then, total, roots, pids = in_flow(tasks, flow)
    assert (total, roots) == (13, [2.0, 5.0])
    assert os.getpid() not in pids

    def recorded():
        with get_client(sync_client=True) as client:
            run = client.read_task_run(then.task_run_id)
        return run if run.state and run.state.is_completed() else None

    wait_for(recorded)
    run = recorded()
    assert run.flow_run_id and run.total_run_time.total_seconds() > 0
    assert [one.input_type for one in run.task_inputs["numbers"]] == ["task_run"], "the edge in Prefect's graph"


def test_a_failure_has_its_own_type_and_what_depends_on_it_does_not_run(tasks):
    def flow():
        bad = tasks.root.submit(-4.0)
        after, beside = tasks.add.submit(bad, 1), tasks.add.submit(1, 1)
        after.wait()
        with pytest.raises(ValueError, match="has no root") as raised:
            bad.result()
        return bad, after.state, beside.result(), raised.value

    bad, after, beside, error = in_flow(tasks, flow)
    assert bad.state.is_failed() and beside == 2
    assert (after.type.value, after.name) == ("PENDING", "NotReady")
    assert "in root" in error.__notes__[-1], "the traceback there"

    def lines():
        with get_client(sync_client=True) as client:
            logs = client.read_logs(LogFilter(task_run_id=LogFilterTaskRunId(any_=[bad.task_run_id])))
        return {(log.level, log.message) for log in logs}

    wait_for(lambda: (20, "printed -4.0") in lines())
    assert {(30, "logged -4.0"), (30, "as root of -4.0")} <= lines()


def test_retries_limits_hooks_and_caches_are_prefects(tasks, tmp_path):
    folders = [tmp_path / name for name in ("tries", "waits", "stored")]
    for folder in folders:
        folder.mkdir()
    seen = []

    def hook(task, run, state):
        seen.append((task.name, run.run_count, state.name))

    number = uuid.uuid4().int

    def flow():
        tries = tasks.third_time.with_options(on_completion=[hook]).submit(str(folders[0]))
        late = tasks.patient.submit(str(folders[1]))
        late.wait()
        made = tasks.stored.submit(number, str(folders[2]))
        again = tasks.stored.submit(number, str(folders[2]), wait_for=[made])
        return tries.result(), late.state, [made.result(), again.result()], again.state.name

    count, late, values, name = in_flow(tasks, flow)
    assert count == 3 and seen == [("third_time", 3, "Completed")]
    assert isinstance(late, State) and (late.type.value, late.name) == ("FAILED", "TimedOut")
    assert values == [number, number] and name == "Cached" and len(list(folders[2].iterdir())) == 1


def test_a_worker_that_dies_is_a_crash_with_its_cause(tasks):
    def flow():
        dead, alive = tasks.die.submit(), tasks.add.submit(2, 3)
        dead.wait()
        with pytest.raises(Crashed, match="exit code 3"):
            dead.result()
        return dead.state, alive.result()

    state, alive = in_flow(tasks, flow)
    assert state.is_crashed() and "exit code 3" in state.message and alive == 5


def test_what_cannot_be_meant_is_told_at_once(tasks):
    def flow():
        with pytest.raises(OptionError, match="generator"):
            tasks.values.submit(3)
        with pytest.raises(PayloadError):
            tasks.process.submit(threading.current_thread()).result()
        return tasks.add.submit(1).result()

    assert in_flow(tasks, flow) == 1
    for options in ({"retries": 2}, {"max_pilots": 0}, {"cpu_per_node": 2}):
        with pytest.raises(OptionError):
            ClusterTaskRunner(**options)
    with pytest.raises(RuntimeError):
        tasks.IN_PILOTS.submit(tasks.add, {"numbers": (1,)})
    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(Exception, match="on_the_server"):
        tasks.IN_PILOTS.duplicate().__enter__()


def test_the_next_flow_run_finds_the_pilot_warm(tasks):
    def flow():
        return {future.result() for future in [tasks.process.submit() for _ in range(4)]}

    first = in_flow(tasks, flow)
    count = len(GridClient().campaigns())
    assert in_flow(tasks, flow) & first, "a worker of before"
    assert len(GridClient().campaigns()) == count
    assert tasks.IN_PILOTS.duplicate() == tasks.IN_PILOTS != ClusterTaskRunner(cpus_per_node=2)


def test_a_flow_inside_a_flow_has_pilots_of_its_own(tasks):
    """This machine has one pilot at a time: that of the outer flow gives its place up while it has nothing to do."""

    def flow():
        first = tasks.add.submit(1).result()
        inner = in_flow(tasks, lambda: tasks.add.submit(first, 2).result())
        return tasks.add.submit(inner, 3).result()

    before = {campaign.id for campaign in GridClient().campaigns() if campaign.is_open}
    assert in_flow(tasks, flow) == 6
    assert {campaign.id for campaign in GridClient().campaigns() if campaign.is_open} - before


def test_an_interrupted_flow_takes_its_tasks_along(tasks, tmp_path):
    def interrupt():
        tasks.patient.with_options(timeout_seconds=None).submit(str(tmp_path))
        wait_for((tmp_path / "begun").exists)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tasks.call(interrupt)
    campaign = Campaign.attach()
    assert campaign.wait(60).state is CampaignState.CANCELLED
    wait_for(lambda: all(pilot["state"] == "ended" for pilot in GridClient().pilots(campaign.id)))


def test_the_pilots_of_a_flow_that_was_killed_end(tasks, script, tmp_path):
    text = f"""
import sys
sys.path.insert(0, {str(os.path.dirname(tasks.__file__))!r})
import in_pilots
from slurm_ray_flow import on_the_server
with on_the_server():
    in_pilots.wait({str(tmp_path)!r})
"""
    process = script(text, wait=False)
    wait_for((tmp_path / "begun").exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    campaign = Campaign.attach()
    (tmp_path / "go").touch()
    assert campaign.wait(120).state is CampaignState.SUCCEEDED
    assert all(pilot["state"] == "ended" for pilot in GridClient().pilots(campaign.id))
