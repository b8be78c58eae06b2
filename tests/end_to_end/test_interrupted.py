"""What ends a run early, and what does not: signals, cancels, kills; each with real processes."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_ray_flow import Cancelled, Handle, Lost, RunState
from slurm_ray_flow.blocks import store
from slurm_ray_flow.tasks.cancellation import ASK_SECONDS
from support import wait_for

pytestmark = pytest.mark.server

PROJECT = Path(__file__).parent / "project"
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


class Waiting:
    """A run of `served.wait` that somebody started."""

    def __init__(self, api, go):
        self.api, self.go = api, go
        wait_for(Path(f"{go}.pid").exists)
        wait_for(lambda: Path(f"{go}.pid").read_text())
        self.pid = int(Path(f"{go}.pid").read_text())
        self.flow_run = next(run for run in self._runs() if run["parameters"] == {"go": str(go)})
        self.id = self.flow_run["id"]
        self.handle = Handle.attach(self.id)
        assert str(self.pid) in self.left()

    def _runs(self):
        return self.api.post("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 100})

    def state(self):
        return self.api.get(f"/flow_runs/{self.id}")["state_type"]

    def set_state(self, kind):
        self.api.post(f"/flow_runs/{self.id}/set_state", {"state": {"type": kind}, "force": True})

    def left(self):
        """The processes that belong to the run."""
        return [pid for pid in filter(str.isdigit, os.listdir("/proc")) if self.id.encode() in variables(pid)]

    def assert_gone(self):
        wait_for(lambda: not self.left())


def variables(pid):
    with contextlib.suppress(OSError):
        found = Path(f"/proc/{pid}/environ").read_bytes()
        return next((line for line in found.split(b"\0") if line.startswith(b"SRF_RUN_ID=")), b"")
    return b""


@pytest.fixture
def waiting(served, api, tmp_path):
    """A script that waits for its run; gives the script's process and the run."""
    process = served(tmp_path / "go")
    return process, Waiting(api, tmp_path / "go")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_run(waiting, number):
    process, run = waiting
    process.send_signal(number)
    _, stderr = process.communicate(timeout=180)
    assert process.returncode != 0
    assert "Logging error" not in stderr
    run.assert_gone()
    assert run.handle.status() is RunState.CANCELLED
    wait_for(lambda: run.state() in FINAL)
    assert run.state() == "CRASHED"


def test_a_cancel_in_prefect_reaches_a_script(waiting):
    process, run = waiting
    run.set_state("CANCELLING")
    stdout, stderr = process.communicate(timeout=180)
    assert "value" not in stdout
    assert "Cancelled: " in stderr
    run.assert_gone()
    assert run.state() == "CANCELLED"


def test_a_cancel_from_another_process(waiting):
    process, run = waiting
    assert run.handle.cancel() is True
    run.assert_gone()
    _, stderr = process.communicate(timeout=180)
    assert "Cancelled: " in stderr
    with pytest.raises(Cancelled):
        run.handle.result(180)
    assert run.state() == "CANCELLED"


def deployed(api, name):
    wanted = {"deployments": {"name": {"any_": [name]}}}
    wait_for(lambda: api.post("/deployments/filter", wanted))
    return api.post("/deployments/filter", wanted)


def test_a_cancel_of_a_served_run(served, api, tmp_path):
    served("wait-served")
    [deployment] = deployed(api, "waiting")
    go = str(tmp_path / "go")
    api.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"go": go}})
    run = Waiting(api, go)
    run.set_state("CANCELLING")
    wait_for(lambda: run.state() in FINAL)
    run.assert_gone()
    assert run.state() == "CANCELLED"
    assert run.handle.status() is RunState.CANCELLED


@pytest.mark.parametrize("how", ["submit", "submit-async"])
def test_a_script_that_submits_and_ends_leaves_the_run_alone(served, api, tmp_path, how):
    process = served(how, tmp_path / "go")
    stdout, stderr = process.communicate(timeout=180)
    assert (process.returncode, stderr) == (0, "")
    run = Waiting(api, tmp_path / "go")
    assert run.id == stdout.strip()
    assert run.handle.status() is RunState.RUNNING
    run.go.touch()
    assert run.handle.result(180) == 42


def test_a_killed_caller_leaves_the_run_alone(waiting, api):
    from slurm_ray_flow.blocks.server.sweep import sweep

    process, run = waiting
    process.kill()
    process.communicate()
    assert run.handle.status() is RunState.RUNNING
    run.go.touch()
    assert run.handle.result(180) == 42
    assert list(run.handle.logs()) == ["gone on"]
    list(sweep(api))
    assert run.state() == "COMPLETED"


def retried(run):
    """Run a flow run that counts as crashed again, as its user does."""
    from slurm_ray_flow.blocks.server import ensure_server
    from slurm_ray_flow.blocks.server.client import client_settings

    run.set_state("CRASHED")
    command = [str(Path(sys.executable).with_name("prefect")), "flow-run", "retry", run.id, "--entrypoint"]
    environment = {**os.environ, **client_settings(ensure_server(print))}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, "served.py:wait"], cwd=PROJECT, env=environment, **pipes)


def test_a_value_that_nobody_had_is_picked_up(waiting):
    process, run = waiting
    process.kill()
    process.communicate()
    run.go.touch()
    wait_for(lambda: run.handle.status() is RunState.SUCCEEDED)
    again = retried(run)
    said, _ = again.communicate(timeout=180)
    assert again.returncode == 0, said
    assert "gone on" in said
    assert (run.state(), run.handle.result(180)) == ("COMPLETED", 42)
    assert store.find_record(run.id).attempt == run.id
    assert Path(f"{run.go}.pid").read_text() == str(run.pid)


def test_a_deployments_run_whose_process_was_killed_is_picked_up(served, api, tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_RUNNER_POLL_FREQUENCY", "1")
    served("wait-served")
    [deployment] = deployed(api, "waiting")
    go = str(tmp_path / "go")
    api.post(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"go": go}})
    run = Waiting(api, go)
    before = store.find_record(run.id)
    killed = before.pid
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: run.state() == "CRASHED")
    assert run.handle.status() is RunState.RUNNING
    run.set_state("SCHEDULED")
    wait_for(lambda: store.find_record(run.id).pid != killed)
    Path(go).touch()
    wait_for(lambda: run.state() == "COMPLETED")
    assert run.handle.result(180) == 42
    assert Path(f"{go}.pid").read_text() == str(run.pid)
    after = store.find_record(run.id)
    assert (after.attempt, after.created) == (run.id, before.created)


def kill_head(run):
    """Both of its processes at once, so that neither can say what happened."""
    heads = [parent_of(run.pid), parent_of(parent_of(run.pid))]
    for pid in heads:
        os.kill(pid, signal.SIGKILL)


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def test_a_killed_head_is_noticed(waiting):
    process, run = waiting
    kill_head(run)
    _, stderr = process.communicate(timeout=60)
    assert "Lost: " in stderr
    with pytest.raises(Lost):
        run.handle.result(180)
    run.assert_gone()
    assert run.state() == "FAILED"


def test_what_was_lost_is_started_again(served, api, tmp_path):
    go = tmp_path / "go"
    process = served(go, "again")
    run = Waiting(api, go)
    first = run.pid
    kill_head(run)
    wait_for(lambda: Path(f"{go}.pid").read_text() not in {"", str(first)})
    go.touch()
    stdout, _ = process.communicate(timeout=180)
    assert "value 42" in stdout
    assert run.handle.result(180) == 42
    assert run.handle._record_and_cluster()[0].attempt == f"{run.id}.2"
    assert run.state() == "COMPLETED"


def test_a_run_that_the_server_takes_for_crashed_ends_well(waiting):
    process, run = waiting
    run.set_state("CRASHED")
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(ASK_SECONDS + 1)
    run.go.touch()
    stdout, _ = process.communicate(timeout=180)
    assert "value 42" in stdout
    assert run.state() == "COMPLETED"
