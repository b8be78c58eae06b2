"""Functions on a Slurm cluster that is reached by SSH, through the whole launch: what the caller gets, what stays."""

import json
import os
import secrets
from concurrent.futures import ThreadPoolExecutor

import pytest

from hosts.launcher import USER
from hosts.slurm import ENDED
from onlookers import processes_seen
from slurm_ray_flow import Cancelled, RunState
from slurm_ray_flow.interface.session import Launching
from support import Noting, wait_for

pytestmark = pytest.mark.server


def test_a_value_comes_home_with_what_was_printed(jobs, capfd):
    import held

    folder = jobs.folder()
    assert jobs.on(held.note)(folder, "one") == "<one>"
    assert "says one\n" in capfd.readouterr().out
    assert jobs.starts(folder) == ["one"]


def test_the_functions_own_exception_is_raised(jobs):
    import given
    import held

    with pytest.raises(given.GivenError) as caught:
        jobs.on(held.fail)()
    assert caught.value.args == (7,)
    assert "in fail" in "".join(caught.value.__notes__)


def test_fifty_megabytes_go_there_and_come_back(jobs):
    import held

    value = bytes(range(256)) * 195_313
    assert jobs.on(held.give_back)(value) == value


@pytest.mark.ray
def test_two_ray_clusters_at_once_on_the_same_two_nodes(jobs):
    import spread

    folder = jobs.folder()
    with ThreadPoolExecutor() as pool:
        one, two = pool.map(lambda _: spread.squares(folder, 2), range(2))
    assert [one[:2], two[:2]] == [(328350, ["c1", "c2"])] * 2
    for _, _, nodes in (one, two):
        assert {name: resources["CPU"] for name, resources in nodes.items()} == {"c1": 2, "c2": 2}
        assert all(resources["memory"] <= 1500 * 2**20 for resources in nodes.values())
    jobs.over()


@pytest.mark.ray
def test_nodes_that_share_their_temporary_folder(jobs):
    import spread

    shared = f"/home/{USER}/tmp"
    cluster = jobs.but(setup=[f"mkdir -p {shared}", f"export TMPDIR={shared}"])
    total, hosts, _ = spread.squares.with_options(cluster=cluster)()
    assert (total, hosts) == (328350, ["c1", "c2"])
    wait_for(lambda: not list(jobs.host.path(shared).glob("srf-*")))
    jobs.over()


@pytest.mark.ray
def test_variables_of_a_start_file_change_nothing_but_the_defaults_that_are_told(jobs):
    import spread

    lines = ("SBATCH_CONSTRAINT=none", "SBATCH_NODELIST=none", "SBATCH_EXCLUSIVE=1", "SLURM_HOSTFILE=/none")
    start = jobs.host.path(f"/home/{USER}/.bashrc")
    before = start.read_text()
    start.write_text("".join(f"export {line}\n" for line in (*lines, "SBATCH_PARTITION=gpu")) + before)
    shown = Noting()
    anew = jobs.but(root=jobs.root.replace("/home/", "/home/./"))  # the same folder, by a program of its own
    try:
        found = jobs.on(spread.squares, cluster=anew).call(Launching(shown), (), {})
    finally:
        start.write_text(before)
    assert found[:2] == (328350, ["c1", "c2"])
    assert any("SBATCH_PARTITION=gpu" in text for text in shown.said), shown.said
    jobs.over()


@pytest.mark.ray
def test_cards_are_as_asked_on_each_node(jobs):
    import spread

    resources, seen = spread.cards()
    assert (resources["GPU"], resources["CPU"]) == (2, 4)
    assert [host for host, _ in seen] == ["c1", "c2"]
    assert {card for _, card in seen} <= {"0", "1"}
    jobs.over()


@pytest.mark.ray
def test_background_processes_end_with_the_function_on_all_nodes(jobs):
    import spread

    assert spread.leave_behind("3073") == ["c1", "c2"]
    jobs.over()


@pytest.mark.parametrize("how", ["handle", "srf"])
def test_exactly_the_cancelled_jobs_are_gone(jobs, how):
    """One runs and one waits; another job of the user, whose name is like theirs, goes on."""
    import held

    running = jobs.begun(held.wait)
    name = running.job["JobName"]
    other = jobs.slurm.submit(USER, "sleep 3000", f"--job-name={name[:-1]}", "--output=/dev/null")
    waiting = jobs.waiting(held.wait, cluster=jobs.but(sbatch_options=["--begin=now+1hour"]))
    for run in (waiting, running):
        if how == "handle":
            assert run.handle.cancel() is True
        else:
            said, _ = jobs.srf("cancel", run.id).communicate(timeout=180)
            assert "is cancelled" in said
        with pytest.raises(Cancelled):
            run.handle.result(180)
        assert run.handle.status() is RunState.CANCELLED
    wait_for(lambda: running.job["JobState"] in ENDED)
    assert waiting.job["JobState"] == "CANCELLED"
    assert jobs.slurm.state(other) == "RUNNING"
    jobs.slurm.scancel(other)
    jobs.over()


def test_what_is_secret_stays_private(jobs):
    import held

    token = secrets.token_hex(16)
    with processes_seen() as seen:
        run = jobs.begun(held.wait, env_vars={"TOKEN": token})
        described = jobs.slurm.root("scontrol", "--details", "show", "job", run.job["JobId"])
        script = jobs.slurm.root("scontrol", "write", "batch_script", run.job["JobId"], "-")
        run.go()
        assert run.handle.result(180) == 42
    assert not [arguments for _, arguments, _ in seen if token.encode() in arguments]
    assert "remote/head/head.py" in script
    assert token not in script + described
    assert token in jobs.host.path(f"{jobs.root}/runs/{run.id}/spec.json").read_text()
    modes = {}
    for folder, folders, files in os.walk(jobs.host.path(f"{jobs.root}/runs/{run.id}")):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            modes[path] = oct(os.lstat(path).st_mode & 0o077)
    assert {path: mode for path, mode in modes.items() if mode != "0o0"} == {}
    assert jobs.host.path(jobs.root).stat().st_mode & 0o777 == 0o700
    jobs.over()


def test_a_run_is_followed_from_other_processes(jobs):
    folder = jobs.folder()
    script = jobs.script("submit", folder, jobs.name)
    run_id = script.communicate(timeout=180)[0].strip()
    following, attached = jobs.srf("logs", run_id, "--follow"), jobs.srf("attach", run_id, "--json")
    assert following.stdout.readline() == "waits\n"
    jobs.go(folder)
    assert following.communicate(timeout=180)[0] == "gone on\n"
    assert json.loads(attached.communicate(timeout=180)[0])["value"] == 42
    assert len(jobs.starts(folder)) == 1
    jobs.over()
