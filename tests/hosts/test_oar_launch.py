"""Functions on a real OAR cluster that is reached by SSH: their values, and each way to end."""

import pytest

from slurm_ray_flow import Cancelled, OptionError, Rejected, RunState, TimeLimit
from support import BOUND, wait_for

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def oar_launches(server, oar_lab, project):
    from hosts.launcher import own
    from hosts.oar_launch_lab import OarLaunchLab

    return OarLaunchLab(oar_lab, project, own("oar-launches"))


@pytest.fixture
def jobs(oar_launches, in_project):
    """The cluster; nothing is left on it."""
    yield oar_launches
    oar_launches.clear()


def test_a_value_comes_home_by_one_job_with_the_asked_resources(jobs):
    import held

    folder = jobs.folder()
    handle = jobs.on(held.note, cpus_per_node=2, time_limit="5m").submit(folder, "one")
    assert handle.result(BOUND) == "<one>"
    [job] = jobs.jobs(handle.run_id)
    assert "/nodes=1/core=2,walltime=0:05:00" in job["initial_request"]
    assert len(job["assigned_resources"]) == 2
    assert jobs.starts(folder) == ["one"]
    jobs.over()


@pytest.mark.ray
def test_ray_over_two_nodes(jobs):
    import spread

    total, hosts, nodes = jobs.on(spread.squares, nodes=2, cpus_per_node=2)()
    assert (total, hosts) == (328350, ["o1", "o2"])
    assert {name: resources["CPU"] for name, resources in nodes.items()} == {"o1": 2, "o2": 2}
    jobs.over()


def test_a_job_that_the_server_could_not_announce_runs_once(jobs):
    import held

    folder = jobs.folder()
    with jobs.oar.without_server():
        handle = jobs.on(held.note).submit(folder)
        wait_for(lambda: jobs.jobs(handle.run_id), BOUND)
    assert handle.result(BOUND) == "<noted>"
    assert len(jobs.jobs(handle.run_id)) == 1
    assert jobs.starts(folder) == ["noted"]


def test_cancelling_ends_the_job_in_order_and_a_waiting_one_at_once(jobs):
    import held

    first, _ = jobs.begun(held.wait, nodes=2, cpus_per_node=4)
    waiting = jobs.on(held.wait, nodes=2, cpus_per_node=4).submit(jobs.folder())
    wait_for(lambda: waiting.status() is RunState.WAITING, BOUND)
    for handle in (waiting, first):
        assert handle.cancel()
        with pytest.raises(Cancelled):
            handle.result(BOUND)
    jobs.over()


def test_an_administrators_oardel_is_a_cancel_and_names_who_did_it(jobs):
    import held

    handle, _ = jobs.begun(held.wait)
    jobs.oar.oardel(jobs.jobs(handle.run_id)[-1]["Job_Id"])
    with pytest.raises(Cancelled, match="User root requested to frag"):
        handle.result(BOUND)


def test_a_best_effort_run_that_is_preempted_is_tried_again(jobs):
    import held

    handle, folder = jobs.begun(held.wait, partition="besteffort", nodes=2, cpus_per_node=4)
    rival = jobs.oar.submit("frank", "sleep 5", "-l", "/nodes=2/core=4,walltime=0:5:0", "-d", "/home/frank")
    wait_for(lambda: len(jobs.starts(folder)) == 2, BOUND)
    assert jobs.oar.state(rival) == "Terminated"
    jobs.go(folder)
    assert handle.result(BOUND) == 42
    first, second = jobs.jobs(handle.run_id)
    assert "BESTEFFORT_KILL" in {event["type"] for event in first["events"]}
    assert second["state"] in {"Running", "Finishing", "Terminated"}


def test_a_time_limit_is_the_jobs_walltime(jobs):
    import held

    with pytest.raises(TimeLimit):
        jobs.on(held.too_long)()
    jobs.over()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"partition": "nosuch"}, Rejected, "The queue nosuch does not exist"),
        ({"constraint": "nosuch = 'a'"}, Rejected, 'column "nosuch" does not exist'),
        ({"cpus_per_node": 5}, Rejected, "more than a node has: 4"),
        ({"nodes": 3}, Rejected, "more than the site has of such nodes: 2"),
        ({"memory": "1G"}, OptionError, "can't be requested from OAR"),
    ],
)
def test_a_refusal_says_what_is_wrong_and_leaves_no_job(jobs, options, error, said):
    import held

    before = len(jobs.oar.jobs())
    with pytest.raises(error, match=said):
        jobs.on(held.note, **options)(jobs.folder())
    assert len(jobs.oar.jobs()) == before


def test_the_script_of_a_call_has_oars_directives(jobs):
    import held

    text = jobs.on(held.note, cpus_per_node=2, time_limit="5m").script("/home/alice")
    assert "#OAR -l /nodes=1/core=2,walltime=0:05:00" in text
