"""Launches on a Slurm cluster while something is wrong with it, or with the way to it."""

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hosts import faults
from hosts.launcher import USER
from slurm_ray_flow import ResultError, SlurmRayFlowError
from slurm_ray_flow.core.launch_events import StepStarted
from slurm_ray_flow.interface.session import Launching
from support import BOUND, wait_for

pytestmark = pytest.mark.server

STEPS = ("start_ray", "execute_call", "fetch_outcome")
"""The job is submitted and waited for; it runs; its value comes home."""


ASKED = {"REQUEST_JOB_INFO", "REQUEST_JOB_USER_INFO"}
"""What a squeue asks the controller."""


class Stopping:
    """Holds a launch back at the start of one of its steps until all launches are at theirs."""

    def __init__(self, step, together):
        self._step, self._together = step, together

    def __call__(self, event):
        if event == StepStarted(self._step):
            self._together.wait(120)


def cut_for(host, seconds):
    """No way to the login node for so long; its nodes still reach it."""

    def cut():
        with faults.cut(host, "outside"):
            time.sleep(seconds)

    threading.Thread(target=cut).start()


@pytest.mark.parametrize("seconds", [2, 30])
def test_a_cut_in_any_step_costs_nothing(jobs, seconds):
    """Three launches at once, each at the start of another step when the cut comes."""
    import held

    folder, note = jobs.folder(), jobs.on(held.note)
    together = threading.Barrier(len(STEPS), lambda: cut_for(jobs.host, seconds))
    with ThreadPoolExecutor() as pool:
        launched = {
            step: pool.submit(note.call, Launching(Stopping(step, together)), (folder, step), {}) for step in STEPS
        }
        assert {step: one.result(150) for step, one in launched.items()} == {step: f"<{step}>" for step in STEPS}
    assert sorted(jobs.starts(folder)) == sorted(STEPS)
    names = [job["JobName"] for job in jobs.slurm.jobs() if job["JobName"].startswith("note.")]  # others' are not ours
    assert len(set(names)) == len(names) >= len(STEPS)
    jobs.over()


def test_a_controller_that_goes_and_comes_back(jobs):
    """Once for a moment, once for ten seconds; one job runs and one waits."""
    import held

    running = jobs.begun(held.wait)
    with jobs.full_but(running):
        waiting = jobs.waiting(held.wait)
        jobs.slurm.restart_controller()
        jobs.slurm.stop_controller()
        time.sleep(10)
        jobs.slurm.start_controller()
        assert [run.job["JobState"] for run in (running, waiting)] == ["RUNNING", "PENDING"]
        running.go()
        assert running.handle.result(BOUND) == 42
    wait_for(lambda: jobs.starts(waiting.folder))
    waiting.go()
    assert waiting.handle.result(BOUND) == 42
    assert [len(jobs.starts(run.folder)) for run in (running, waiting)] == [1, 1]
    jobs.over()


@pytest.mark.ray
def test_a_cut_between_nodes_costs_nothing(jobs):
    import spread

    run = jobs.begun(spread.goes_on)
    [other] = [host for host in jobs.slurm.nodes.values() if host != run.node]
    with faults.cut(other):
        time.sleep(5)
    run.go()
    assert run.handle.result(BOUND) == 45
    jobs.over()


def test_a_job_waits_for_long_and_nobody_at_home_with_it(jobs):
    with jobs.drained():
        folder = jobs.folder()
        script = jobs.script("wait", folder, "", jobs.name)
        line = wait_for_line(script, "waits")
        assert re.search(r"not there now|drained|down", line), line
        [job] = jobs.named("wait")
        run_id = job["JobName"].partition(".")[2]
        listed = json.loads(jobs.srf("runs", "--json").communicate(timeout=180)[0])
        [shown] = [run for run in listed if run["run_id"] == run_id]
        assert shown["state"] == "waiting"
        script.send_signal(signal.SIGKILL)
        script.wait()
    jobs.go(folder)
    said, _ = jobs.srf("attach", run_id, "--json").communicate(timeout=BOUND)
    assert json.loads(said)["value"] == 42
    assert len(jobs.starts(folder)) == 1
    jobs.over()


def wait_for_line(process, word):
    """The first line with a word that a process writes on stderr."""
    for line in process.stderr:
        if word in line:
            return line
    raise AssertionError(f"no line with {word!r}")


def test_a_full_home_is_told_and_nothing_is_submitted(jobs):
    import held

    path, before = f"/home/{USER}/full", len(jobs.slurm.jobs())
    with jobs.slurm.small_disk(USER, path, "256k"):
        with pytest.raises(SlurmRayFlowError, match=r"space|room|full|MiB"):
            jobs.on(held.note, cluster=jobs.but(root=path))(jobs.folder())
        assert len(jobs.slurm.jobs()) == before


def test_a_home_that_gets_full_while_the_function_runs_is_told(jobs):
    import ends

    path = f"/home/{USER}/filling"
    with jobs.slurm.small_disk(USER, path, "300M"):
        cluster = jobs.but(root=path)
        with pytest.raises(ResultError, match="space"):
            jobs.on(ends.large, cluster=cluster)(300 << 20)
        jobs.over()


def connections_to(host):
    """The local ports of this process's own connections there; Prefect's server may watch runs over one of its own."""
    own = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            own.add(os.readlink(path))
    there = "".join(f"{int(part):02X}" for part in reversed(host.address.split("."))) + ":0016"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {line[1] for line in lines if (line[2], line[3]) == (there, "01") and f"socket:[{line[9]}]" in own}


def test_twenty_at_once_over_one_connection_and_with_few_questions(jobs):
    """Eight run at once, and the others wait in the queue."""
    import held

    folder, wait = jobs.folder(), jobs.on(held.wait, cpus_per_node=1)
    jobs.on(held.note)(jobs.folder())  # what is slow about a first launch is over
    connections, before = connections_to(jobs.host), len(jobs.slurm.queries(USER))

    def asked():
        return [query.time for query in jobs.slurm.queries(USER)[before:] if query.what in ASKED]

    with ThreadPoolExecutor(20) as pool:
        launched = [pool.submit(wait, folder) for _ in range(20)]
        try:
            wait_for(lambda: len(jobs.named("wait")) == 20 and len(asked()) >= 4)
        finally:
            jobs.go(folder)
        assert [one.result(BOUND) for one in launched] == [42] * 20
    assert len(jobs.starts(folder)) == 20
    assert connections_to(jobs.host) == connections
    assert len(connections) == 1
    assert all(later - earlier >= 1.9 for earlier, later in itertools.pairwise(asked())), asked()
    jobs.over()
