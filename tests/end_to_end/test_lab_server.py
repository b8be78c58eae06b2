"""A lab server: PostgreSQL under Prefect, one worker, and what runs on its schedules when the worker is killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import postgres
import prepared
from prepared import SRF
from slurm_ray_flow.blocks.server.address import ServerState
from slurm_ray_flow.blocks.server.api import Api
from support import wait_for

TOP = Path(__file__).parents[2]
UNITS = sorted((TOP / "deployments" / "lab-server").glob("*.service"))
SECONDS = 400
CAMPAIGN = """
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow
def half(number: int) -> float:
    return number / 2

@slurm_ray_flow
def unlucky(number: int) -> None:
    raise ValueError("bad luck")
"""

pytestmark = pytest.mark.server
needs_postgres = pytest.mark.skipif(postgres.programs() is None, reason="Debian's postgresql is not installed")


class LabServer:
    """A server with a home of its own, whose commands are run as a user would."""

    def __init__(self, folder, url, temporary):
        self.folder, self.home, self.url = folder, folder / "home", url
        self.env = {**os.environ, "SRF_HOME": str(self.home), "PREFECT_WORKER_QUERY_SECONDS": "1"}
        self.env["TMPDIR"] = str(temporary)
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            self.port = chosen.getsockname()[1]
        self.srf("up", SRF_DATABASE_URL=url, SRF_SERVER_PORT=str(self.port))
        state = ServerState(**{k: v for k, v in json.loads(self.file("server.json")).items() if k != "url"})
        self.state, self.api = state, Api(state.url, f"srf:{self.file('secret')}")

    def file(self, name):
        return (self.home / "server" / name).read_text()

    def srf(self, *words, **variables):
        return self._run([SRF, *words], **variables)

    def prefect(self, *words):
        return self.srf("prefect", *words)

    def _run(self, command, **variables):
        done = prepared.run(command, env={**self.env, **variables}, cwd=self.folder, timeout=SECONDS)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def worker(self):
        command = [SRF, "prefect", "worker", "start", "--pool", "srf"]
        with (self.folder / "worker.log").open("a") as log:
            return subprocess.Popen(command, env=self.env, cwd=self.folder, stdout=log, stderr=log)

    def deployment(self, name):
        [found] = self.api.post("/deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return found

    def runs(self, flow, *states, since=""):
        wanted = {"flows": {"name": {"any_": [flow]}}, "sort": "START_TIME_DESC", "limit": 50}
        runs = self.api.post("/flow_runs/filter", {**wanted, "flow_runs": {"state": {"type": {"any_": states}}}})
        return [run for run in runs if (run["start_time"] or "") >= since]


@pytest.fixture(scope="module")
def lab(tmp_path_factory, taken_runner_storage):
    with postgres.postgres() as url:
        server = LabServer(tmp_path_factory.mktemp("lab"), url, taken_runner_storage)
        yield server
        server.srf("down")


def schedule(lab, **parameters):
    """Has the campaign run every few seconds, and nothing else."""
    for other in lab.api.post("/deployments/filter", {}):
        lab.api.patch(f"/deployments/{other['id']}", {"schedules": []})
    deployment = lab.deployment("campaign")
    wanted = {**deployment["parameters"], **parameters}
    often = [{"active": True, "schedule": {"interval": 5}}]
    lab.api.patch(f"/deployments/{deployment['id']}", {"parameters": wanted, "schedules": often})
    return deployment["id"]


@needs_postgres
def test_prefect_keeps_everything_in_postgresql_and_a_worker_does_what_is_due(lab):
    password = urlsplit(lab.url).password
    assert lab.state.port == lab.port
    assert not list(lab.home.glob("**/prefect.db"))
    assert password in lab.file("database"), "the next start needs no variable"
    assert (lab.home / "server" / "database").stat().st_mode & 0o077 == 0
    lab.api.post("/work_pools/", {"name": "srf", "type": "process"})
    lab.prefect("deploy", "--all")
    shown = {one["name"]: one["schedules"] for one in lab.api.post("/deployments/filter", {})}
    assert shown.keys() == {"campaign", "sweep", "mirror", "checkup", "cleanup"}
    assert [one["active"] for one in shown.pop("campaign")] == [False], "it waits for a function of yours"
    assert all(one["active"] for schedules in shown.values() for one in schedules)
    (lab.folder / "half.py").write_text(CAMPAIGN)
    deployment = schedule(lab, function="half:half", directory=str(lab.folder), values=[2, 3])
    worker = lab.worker()
    try:
        wait_for(lambda: lab.runs("campaign", "COMPLETED") or worker.poll(), SECONDS)
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            assert password.encode() not in _content(line), line
        # (One that a killed worker has taken and not begun would hold the place of the next for five minutes.)
        wait_for(lambda: lab.runs("campaign", "RUNNING") or worker.poll(), SECONDS)
        worker.kill()
        worker.wait()
        killed = datetime.now(timezone.utc).isoformat()
        worker = lab.worker()
        wait_for(lambda: lab.runs("campaign", "COMPLETED", since=killed) or worker.poll(), SECONDS)
        lab.api.patch(f"/deployments/{deployment}", {"schedules": []})
        # One at a time: while another runs, the next one would be cancelled.
        wait_for(lambda: not lab.runs("campaign", "SCHEDULED", "PENDING", "RUNNING"), SECONDS)
        fails = {"function": "half:unlucky", "directory": str(lab.folder), "values": [13]}
        made = lab.api.post(f"/deployments/{deployment}/create_flow_run", {"parameters": fails})["id"]
        wait_for(lambda: lab.api.get(f"/flow_runs/{made}")["state_type"] == "FAILED", SECONDS)
    finally:
        worker.terminate()
        worker.wait(180)
    said = (lab.folder / "worker.log").read_text()
    assert "SlurmRayFlowError: 0 of 1 done, 1 failed" in said and "bad luck" in said
    assert "flow_engine" not in said
    runs = lab.runs("half", "COMPLETED")
    assert len(runs) >= 4, "two campaigns of two values each"
    [table] = lab.api.post("/artifacts/latest/filter", {"artifacts": {"key": {"any_": ["campaign-half-half"]}}})
    assert "half:half: 2 of 2 done" in table["description"]
    assert runs[0]["id"][:8] in table["data"] or runs[1]["id"][:8] in table["data"]


def _content(path):
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_systemd_understands_the_units(unit, tmp_path):
    programs = tmp_path / "lab" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for program in (sys.executable, SRF):
        (programs / Path(program).name).symlink_to(program)
    env = {**os.environ, "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    command = ["systemd-analyze", "--user", "verify", *map(str, UNITS)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=180)
    assert (done.returncode, done.stderr) == (0, "")
