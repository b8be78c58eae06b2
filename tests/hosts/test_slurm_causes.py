"""Why a job has ended, for each reason there is: provoked for real, told by an error of its own."""

import contextlib
import os
import signal
import time

import pytest

from hosts import faults
from slurm_ray_flow import Cancelled, EnvironmentFailed, Lost, NodeFailed, OutOfMemory, Preempted, Rejected, TimeLimit
from slurm_ray_flow.interface.session import Launching
from support import BOUND, Noting, wait_for

pytestmark = pytest.mark.server

VERDICT = 60.0
"""Seconds in which whoever waits is told, on a slow machine too."""
QUICKLY = ("SlurmdTimeout=3", "MessageTimeout=2", "KillWait=2")


def heads(run):
    """The two processes of a run's head."""
    return [pid for pid, argv in run.node.processes().items() if run.id in argv]


def test_too_much_memory_is_told_whoever_notices(jobs):
    import ends
    import held

    with pytest.raises(OutOfMemory, match="MiB"):
        jobs.on(held.eat)()
    with pytest.raises(OutOfMemory):
        ends.takes_all_at_once()
    jobs.over()


def test_a_child_that_the_kernel_ends_is_told_beside_the_value(jobs):
    import ends

    if not jobs.slurm.memory_limits:
        pytest.skip("this machine has no control groups that bound memory")
    shown = Noting()
    assert jobs.on(ends.loses_a_child).call(Launching(shown), (), {}) == signal.SIGKILL
    assert any("the kernel ended a process" in text for text in shown.warned), shown.warned
    jobs.over()


def test_too_much_time_is_told_whoever_notices(jobs):
    """Ours is over a little before Slurm's; Slurm ends a job whose head stands still."""
    import ends
    import held

    ours = ends.sleeps.submit()
    stopped = jobs.begun(held.wait)
    for pid in heads(stopped):
        os.kill(pid, signal.SIGSTOP)
    with jobs.slurm.settings("KillWait=1"):
        jobs.slurm.end_soon(stopped.job["JobId"])
        with pytest.raises(TimeLimit, match="Slurm ended the job"):
            stopped.handle.result(60 + VERDICT)
    with pytest.raises(TimeLimit):
        ours.result(180)
    assert jobs.job(ours.run_id)["JobState"] != "TIMEOUT"
    jobs.over()


def test_who_gives_way_is_told_and_comes_again(jobs):
    import ends
    import held

    jobs.slurm.root("scontrol", "update", "PartitionName=spare", "GraceTime=0")
    once = jobs.begun(held.wait, partition="spare", cpus_per_node=1, resubmit=0)
    again = jobs.begun(ends.says_when, partition="spare")
    try:
        first = jobs.slurm.submit("frank", "true", "--nodes=2", "--exclusive", "--output=/dev/null")
        with pytest.raises(Preempted):
            once.handle.result(BOUND)
        wait_for(lambda: jobs.slurm.state(first) == "COMPLETED")
        wait_for(lambda: len(jobs.starts(again.folder)) == 2)
        again.go()
        assert again.handle.result(BOUND) == "started\nstarted\n"
    finally:
        jobs.slurm.root("scontrol", "update", "PartitionName=spare", "GraceTime=5")
    assert len(jobs.starts(once.folder)) == 1
    assert len(jobs.jobs(again.id)) == 2
    jobs.over()


@pytest.mark.parametrize("silent", [False, True], ids=["its head can say so", "its head is dead"])
def test_a_job_that_is_put_back_into_the_queue_comes_again_once(jobs, silent):
    """An administrator may do so; the job itself must not begin a second time beside the next try, nor stay there."""
    import held

    run = jobs.begun(held.wait, resubmit=1)
    number = run.job["JobId"]
    jobs.slurm.root("scontrol", "update", f"JobId={number}", "Requeue=1")
    for pid in heads(run) if silent else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    jobs.slurm.root("scontrol", "requeue" if silent else "requeuehold", number)
    wait_for(lambda: len(jobs.starts(run.folder)) == 2)
    run.go()
    assert run.handle.result(BOUND) == 42
    assert len(jobs.jobs(run.id)) == 2
    jobs.over()


def test_a_node_that_dies_is_told(jobs):
    import held

    with jobs.slurm.settings(*QUICKLY, restart=True):
        run = jobs.begun(held.wait, resubmit=0)
        with jobs.without(run.node), pytest.raises(NodeFailed):
            run.handle.result(BOUND)
    jobs.over()


@contextlib.contextmanager
def on_what_is_left(jobs, function):
    """A run on two nodes that gets its word once one of them, not its first, has no power and is known to be lost."""
    with jobs.slurm.settings(*QUICKLY, restart=True):
        run = jobs.begun(function)
        [other] = [host for host in jobs.slurm.nodes.values() if host != run.node]
        with jobs.without(other):
            wait_for(lambda: "node_lost" in jobs.events(run.id))
            run.go()
            yield run


@pytest.mark.ray
def test_a_run_goes_on_without_a_node_if_ray_can(jobs):
    import spread

    with on_what_is_left(jobs, spread.goes_on) as run:
        assert run.handle.result(BOUND) == 45
    jobs.over()


@pytest.mark.ray
def test_what_ray_can_not_place_without_a_lost_node_is_told(jobs):
    import spread

    with on_what_is_left(jobs, spread.wants_both) as run:
        log = jobs.host.path(f"{jobs.root}/runs/{run.id}/log.txt")
        wait_for(lambda: "(STRICT_SPREAD) asks for 2 times CPU 0.5; there is 1 node of CPU 1" in log.read_text())
        jobs.host.path(f"{run.folder}/enough").touch()
        assert run.handle.result(BOUND) is False
    jobs.over()


def test_somebody_elses_scancel_is_told(jobs):
    import held

    run = jobs.begun(held.wait)
    jobs.slurm.scancel(run.job["JobId"])
    with pytest.raises(Cancelled, match="somebody"):
        run.handle.result(VERDICT)
    with jobs.full():
        waiting = jobs.waiting(held.wait)
        jobs.slurm.scancel(waiting.job["JobId"])
        with pytest.raises(Cancelled, match="cancelled in Slurm"):
            waiting.handle.result(VERDICT)
    jobs.over()


def test_what_slurm_refuses_is_told_in_its_own_words(jobs):
    import held

    before = len(jobs.slurm.queries("alice"))
    with pytest.raises(Rejected, match="reservation") as caught:
        jobs.on(held.wait, cluster=jobs.but(reservation="nothing"))(jobs.folder())
    assert "reservation" in caught.value.advice
    asked = [query.what for query in jobs.slurm.queries("alice")[before:]]
    assert asked.count("REQUEST_JOB_USER_INFO") == 1, asked  # that it is in the queue all the same
    jobs.over()


def test_an_environment_that_a_node_has_not_is_told(jobs):
    import held

    with pytest.raises(EnvironmentFailed, match="module"):
        jobs.on(held.wait, cluster=jobs.but(modules=["nothing"]))(jobs.folder())
    with contextlib.ExitStack() as stack:
        for node in jobs.slurm.nodes.values():
            mount = ["mount", "-t", "tmpfs", "none", "/opt/python"]
            stack.enter_context(faults.mounted(node, "/opt/python", mount))
        with pytest.raises(EnvironmentFailed, match="python"):
            jobs.on(held.wait)(jobs.folder())
    jobs.over()


@pytest.mark.parametrize("forgets", [True, False], ids=["forgotten", "remembered"])
def test_a_job_that_leaves_without_a_word_gets_its_verdict(jobs, forgets):
    """Its head dies, both processes at once; Slurm may have forgotten the job a moment later."""
    import held

    with jobs.slurm.settings(f"MinJobAge={2 if forgets else 300}"):
        run = jobs.begun(held.wait)
        began = time.monotonic()
        for pid in heads(run):
            with contextlib.suppress(ProcessLookupError):  # the one ends when the other does
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(Lost):
            run.handle.result(VERDICT)
        assert time.monotonic() - began < VERDICT
    jobs.over()


def test_a_job_whose_processes_are_killed_with_slurms_own_gets_its_verdict(jobs):
    """Slurm calls it running for a minute or more."""
    import held

    run = jobs.begun(held.wait, resubmit=0)
    wait_for(lambda: jobs.events(run.id))
    time.sleep(12)  # a look at a living one
    begins = f"slurmstepd: [{run.job['JobId']}."
    for pid, argv in run.node.processes().items():
        if run.id in argv or " ".join(argv).startswith(begins):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with pytest.raises(NodeFailed, match="were killed"):
        run.handle.result(2 * VERDICT)
    jobs.over()


def test_accounting_knows_what_the_queue_has_forgotten(accounted):
    import held

    with accounted.slurm.settings("MinJobAge=2", *QUICKLY, restart=True):
        with accounted.full():
            waiting = accounted.waiting(held.wait)
            job = waiting.job
            accounted.slurm.scancel(job["JobId"])
            with pytest.raises(Cancelled, match="cancelled in Slurm"):
                waiting.handle.result(VERDICT)
        run = accounted.begun(held.wait, resubmit=0)
        with accounted.without(run.node), pytest.raises(NodeFailed):
            run.handle.result(BOUND)
        with pytest.raises(OutOfMemory):
            accounted.on(held.eat)()
    assert {row["State"].split()[0] for row in accounted.slurm.accounted(job["JobName"])} == {"CANCELLED"}
    accounted.over()
