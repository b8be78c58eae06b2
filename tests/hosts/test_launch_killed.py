"""Launches on a host whose processes are killed, one kind after the other: the right end, and nothing left."""

import os
import signal

import pytest

from hosts import faults
from hosts.launch_lab import USER, allocation
from slurm_ray_flow import Crashed, Lost, RunState

pytestmark = pytest.mark.server

SECONDS = 60


def kill(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_run_outlives_its_agent_its_session_and_its_client(launches):
    run = launches.waiting()
    kill(*[pid for pid, argv in launches.host.processes().items() if any(arg.endswith("/agent.py") for arg in argv)])
    assert run.handle.status() is RunState.RUNNING
    assert faults.kill_sessions(launches.host, USER)
    assert run.handle.status() is RunState.RUNNING
    assert run.script.poll() is None
    kill(run.script.pid)
    launches.go(run.folder)
    said, _ = launches.srf("attach", run.id).communicate(timeout=180)
    assert "waits\ngone on\n" in said
    assert "42" in said.splitlines()[-1]
    assert run.state() == "succeeded"
    assert len(launches.starts(run.folder)) == 1
    launches.over(run.id)


def test_a_run_whose_watchdog_is_killed_ends_well(launches):
    import held

    run = launches.submitted(held.wait)
    kill(run.watchdog)
    launches.go(run.folder)
    assert run.handle.result(180) == 42
    launches.over(run.id)


@pytest.mark.parametrize("which", ["inner", "keeper", "both", "driver"])
def test_a_killed_process_of_a_run_ends_it(launches, which):
    import held

    run = launches.submitted(held.wait, "3072")
    kill(*({"both": (run.inner, run.keeper)}.get(which) or (getattr(run, which),)))
    launches.over(run.id, SECONDS)
    error = Crashed if which == "driver" else Lost
    with pytest.raises(error):
        run.handle.result(SECONDS)
    assert run.handle.status() is (RunState.FAILED if which == "driver" else RunState.LOST)
    assert ["sleep", "3072"] not in launches.host.processes().values()


@pytest.mark.ray
def test_a_warm_cluster_takes_the_next_call_and_a_killed_part_of_ray_ends_it(launches):
    import with_ray

    first, address = with_ray.warm("one")
    assert with_ray.warm("two") == ("<two>", address)
    [gcs] = [pid for pid, argv in launches.host.processes().items() if argv and argv[0].endswith("/gcs_server")]
    run_id = allocation(gcs)
    assert (first, launches.free()) == ("<one>", False)
    kill(gcs)
    launches.over(run_id, 30)
