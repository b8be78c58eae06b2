"""A run is one job, whatever becomes of sbatch's answer, of the way to the cluster, and of whoever has launched it."""

import contextlib
import json
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from slurm_ray_flow import Handle, Lost, RunState, SshConnection
from slurm_ray_flow.blocks import store
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.run import RunPaths
from slurm_ray_flow.core.scheduler import run_of
from support import BOUND, wait_for

pytestmark = pytest.mark.server

MOMENTS = ("spec.json", "submission.json", "sbatch.err", "job.json")
"""A run's files in the order in which they appear, around its submission."""
IMPATIENT = ("MessageTimeout=2", "SlurmctldTimeout=30")


def runs(lab):
    with contextlib.suppress(FileNotFoundError):
        return {path.name for path in lab.host.path(f"{lab.root}/runs").iterdir()}
    return set()


def appears(lab, before, name, over):
    """Wait for a new run's file; its id. As quickly as possible: what comes next lasts milliseconds."""
    deadline = time.monotonic() + BOUND
    while not over.is_set():
        assert time.monotonic() < deadline, f"no run got a file {name}"
        for run_id in runs(lab) - before:
            if lab.host.path(f"{lab.root}/runs/{run_id}/{name}").exists():
                return run_id
        time.sleep(0.0005)
    return None


def through(lab, road):
    """The cluster by another way."""
    return lab.but(connection=SshConnection(host="login", config_file=road.ssh_config, connect_timeout=5))


@contextlib.contextmanager
def cut_when(lab, name, road):
    """Break the connection as soon as a new run has this file."""
    over, before = threading.Event(), runs(lab)
    found = []

    def wait():
        found.append(appears(lab, before, name, over))
        road.cut()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def test_a_connection_that_breaks_around_the_submission(jobs):
    import held

    with jobs.lab.road("login", delay=0.005) as road:
        cluster = through(jobs, road)
        for moment in MOMENTS:
            folder = jobs.folder()
            with cut_when(jobs, moment, road) as found:
                assert jobs.on(held.note, cluster=cluster)(folder, moment) == f"<{moment}>"
            assert jobs.starts(folder) == [moment]
            assert len(jobs.jobs(found[0])) == 1
    jobs.over()


@contextlib.contextmanager
def site_program(host, name, lines):
    """A site's own program of a name of Slurm's, first on alice's PATH."""
    start_file, program = host.path("/home/alice/.bashrc"), host.path(f"/home/alice/bin/{name}")
    before = start_file.read_text()
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{lines}\n")
    program.chmod(0o755)
    start_file.write_text(f'PATH="$HOME/bin:$PATH"\n{before}')
    try:
        yield
    finally:
        start_file.write_text(before)
        program.unlink()


SBATCH = 'id=$(/usr/bin/sbatch "$@") || exit; echo "** University **"'


@pytest.mark.parametrize(
    "last_lines",
    [
        'echo "Submitted batch job $id on cluster ceo"; echo "Bye!"',
        'echo "Your job has number $id."',
        'echo "Submitted batch job $id"; echo "the budget can not be reached" >&2; exit 1',
    ],
)
def test_a_site_that_says_it_in_its_own_words(jobs, last_lines):
    import held

    folder = jobs.folder()
    lines = f"{SBATCH}\n{last_lines}"
    with site_program(jobs.host, "sbatch", lines), jobs.lab.road("login", delay=0.0) as road:
        assert jobs.on(held.note, cluster=through(jobs, road))(folder, "site") == "<site>"
    assert jobs.starts(folder) == ["site"]
    jobs.over()


def test_a_job_that_the_queue_does_not_name_is_ended_before_it_counts_as_lost(jobs):
    import held

    hidden = f'/usr/bin/squeue "$@" | grep -v "$(cat {jobs.root}/hidden 2>/dev/null || echo nothing)"; true'
    with site_program(jobs.host, "squeue", hidden), jobs.lab.road("login", delay=0.0) as road:
        begun = jobs.begun(held.wait, cluster=through(jobs, road))
        jobs.host.path(f"{jobs.root}/hidden").write_text(begun.handle.run_id)
        with pytest.raises(Lost):
            begun.handle.result(BOUND)
        assert jobs.job(begun.handle.run_id)["JobState"] in ("CANCELLED", "COMPLETING")
    jobs.host.path(f"{jobs.root}/hidden").unlink()
    jobs.over()


def test_a_job_that_the_accounts_have_as_running_lives(accounted):
    import held

    hidden = '/usr/bin/squeue "$@" | grep -v held; true'
    with site_program(accounted.host, "squeue", hidden), accounted.lab.road("login", delay=0.0) as road:
        begun = accounted.begun(held.wait, cluster=through(accounted, road))
        time.sleep(20)
        assert begun.handle.status() is RunState.RUNNING
        begun.go()
        begun.handle.result(BOUND)
    accounted.over()


def test_a_site_that_is_not_known_yet_and_does_not_answer_is_waited_for(jobs):
    import held

    shutil.rmtree(home() / "cache" / "sites", ignore_errors=True)
    asked = jobs.host.path(f"{jobs.root}/slurm")
    for known in asked.glob("site-*.json"):
        known.unlink()
    folder = jobs.folder()
    with ThreadPoolExecutor() as pool, jobs.slurm.settings(*IMPATIENT):
        with jobs.slurm.stuck_controller():
            launched = pool.submit(jobs.on(held.note), folder)
            wait_for(lambda: list(asked.glob("site-*.json")))
            time.sleep(3)
            assert not launched.done()
        assert launched.result(BOUND) == "<noted>"
    assert jobs.starts(folder) == ["noted"]
    jobs.over()


def submitted_while_stuck(lab):
    """A run whose sbatch gives up while the controller stands still; the controller takes the job later."""
    import held

    assert lab.on(held.note)(lab.folder()) == "<noted>"  # then it is known what the site has
    folder, before = lab.folder(), runs(lab)
    with ThreadPoolExecutor() as pool, lab.slurm.settings(*IMPATIENT):
        with lab.slurm.stuck_controller():
            launched = pool.submit(lab.on(held.note), folder)
            run_id = appears(lab, before, "submission.json", threading.Event())
            said = lab.host.path(f"{lab.root}/runs/{run_id}/sbatch.err")
            wait_for(lambda: said.exists() and "timed out" in said.read_text())
        assert launched.result(BOUND) == "<noted>"
    assert lab.starts(folder) == ["noted"]
    return lab.job(run_id)


def test_a_job_that_the_controller_takes_after_sbatch_has_given_up(jobs):
    submitted_while_stuck(jobs)
    jobs.over()


def test_accounting_has_it_once(accounted):
    job = submitted_while_stuck(accounted)
    rows = lambda: [row for row in accounted.slurm.accounted(job["JobName"]) if "." not in row["JobID"]]  # noqa: E731
    wait_for(lambda: [row["State"] for row in rows()] == ["COMPLETED"])
    accounted.over()


def test_a_controller_that_is_away_for_a_while(jobs):
    import held

    folder, before = jobs.folder(), runs(jobs)
    with ThreadPoolExecutor() as pool:
        jobs.slurm.stop_controller()
        try:
            launched = pool.submit(jobs.on(held.note), folder)
            run_id = appears(jobs, before, "submission.json", threading.Event())
            said = jobs.host.path(f"{jobs.root}/runs/{run_id}/sbatch.err")
            wait_for(lambda: said.exists() and "contact slurm controller" in said.read_text())
        finally:
            jobs.slurm.start_controller()
        assert launched.result(BOUND) == "<noted>"
    assert jobs.starts(folder) == ["noted"]
    assert jobs.job(run_id)
    jobs.over()


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_a_client_that_is_killed(jobs, moment):
    """Before its submission there is no job, ever; from then on there is one, and its value can be had."""
    before, folder, over = runs(jobs), jobs.folder(), threading.Event()
    stuck = jobs.slurm.stuck_controller() if moment == "during" else contextlib.nullcontext()
    jobs.block.facts()  # what is slow about a first call is over
    name = {"before": "", "during": "sbatch.err", "after": "job.json"}[moment]
    with stuck:
        script = jobs.script("wait", folder, "", jobs.name)
        run_id = appears(jobs, before, name, over)
        script.send_signal(signal.SIGKILL)
        script.wait()
    attached = jobs.srf("attach", run_id, "--json")
    if moment == "before" and not jobs.jobs(run_id):
        said = "".join(attached.communicate(timeout=180))
        assert attached.returncode == 1, said
        assert "is gone" in said
        assert "never" in said
        assert jobs.jobs(run_id) == []
    else:
        wait_for(lambda: jobs.starts(folder))
        jobs.go(folder)
        assert json.loads(attached.communicate(timeout=180)[0])["value"] == 42
        assert len(jobs.starts(folder)) == 1
        assert len(jobs.jobs(run_id)) == 1
    jobs.over()


def test_a_flow_run_that_is_started_again_picks_up_its_job(accounted, server):
    """Its process was killed, and Prefect starts the same flow run again."""
    from slurm_ray_flow.blocks.server.api import Api
    from slurm_ray_flow.blocks.server.client import client_settings
    from slurm_ray_flow.blocks.server.files import auth_string, server_files

    folder = accounted.folder()
    script = accounted.script("wait", folder, "", accounted.name)
    wait_for(lambda: accounted.starts(folder))
    [job] = accounted.named("wait")
    script.kill()
    script.wait()
    run_id = run_of(job["JobName"])
    crashed = {"state": {"type": "CRASHED"}, "force": True}
    Api(server.url, auth_string(server_files())).post(f"/flow_runs/{run_id}/set_state", crashed)
    again = accounted.prefect(
        *("flow-run", "retry", run_id, "--entrypoint", "again.py:again"),
        **client_settings(server),
        AGAIN_ON=accounted.name,
    )
    wait_for(lambda: store.find_record(run_id).pid == again.pid)
    accounted.go(folder)
    said = "".join(again.communicate(timeout=180))
    assert again.returncode == 0, said
    assert Handle.attach(run_id).result(180) == 42
    assert len(accounted.starts(folder)) == 1
    rows = lambda: [row for row in accounted.slurm.accounted(job["JobName"]) if "." not in row["JobID"]]  # noqa: E731
    wait_for(lambda: [row["State"] for row in rows()] == ["COMPLETED"])
    accounted.over()


def test_two_clients_with_the_same_run_at_once(jobs):
    """Processes, each over a connection of its own."""
    run_id = f"same-{time.monotonic_ns()}"
    paths = RunPaths(jobs.block.root_folder, run_id)
    jobs.block.prepare()
    jobs.block.write(paths.script, b"#!/bin/sh\nexec sleep 1\n")
    connections = jobs.host.connections()
    clients = [jobs.script(jobs.name, run_id, file="submits.py") for _ in range(3)]
    for client in clients:
        assert client.stdout.readline() == "ready\n"
    assert jobs.host.connections() >= connections + len(clients)  # all are there before the first submits
    for client in clients:
        client.stdin.write("go\n")
        client.stdin.flush()
    for client in clients:
        assert client.communicate(timeout=180) == ("submitted\n", "")
    assert len(jobs.jobs(run_id)) == 1
    jobs.over()
