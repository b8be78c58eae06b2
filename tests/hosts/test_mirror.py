"""One real host, two Prefect servers and a stranger: who has it, who waits, and what is left of a killed client."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from slurm_ray_flow import SshServer
from slurm_ray_flow.blocks import limits
from slurm_ray_flow.blocks.server import connected, ensure_server, stop_server
from slurm_ray_flow.blocks.server.api import Api
from slurm_ray_flow.blocks.server.files import auth_string, server_files
from slurm_ray_flow.blocks.ssh import SshConnection
from slurm_ray_flow.core.mirror import limit_name, waiting_state
from support import wait_for

pytestmark = pytest.mark.server

SCRIPT = """
import os, sys, threading, time
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(cluster=os.environ["TEST_CLUSTER"])
def work(who: str, notes: str, seconds: float) -> str:
    with open(notes, "a") as file:
        file.write(f"begin {who}\\n")
    time.sleep(seconds)
    with open(notes, "a") as file:
        file.write(f"end {who}\\n")
    return who

if __name__ == "__main__":
    name, notes, count, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    call = lambda said: print("value", work(said, notes, seconds), flush=True)
    threads = [threading.Thread(target=call, args=(f"{name}-{number}",)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
STRANGER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a")
while True:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
    except OSError:
        time.sleep(0.05)
with open(sys.argv[2], "a") as notes:
    notes.write("begin stranger\\n"); notes.flush()
    deadline = time.monotonic() + 150
    while not os.path.exists(sys.argv[3]) and time.monotonic() < deadline:
        time.sleep(0.05)
    notes.write("end stranger\\n")
"""


class Desi:
    """The host, under a lock and a name of this test's own."""

    def __init__(self, lab: Any, folder: Path) -> None:
        mark = uuid.uuid4().hex[:8]
        self.host, self.folder, self.name = lab["desi"], folder, f"desi-{mark}"
        self.notes, self.lock = f"/home/alice/notes-{mark}", f"/home/alice/lock-{mark}"
        self.block = SshServer(connection=SshConnection(host="desi", config_file=lab.ssh_config), lock_path=self.lock)
        self.host.run("alice", ["touch", self.notes, self.lock])
        (folder / "script.py").write_text(SCRIPT)
        self.started: list[subprocess.Popen[str]] = []

    def register(self) -> Api:
        """Save the block on the server of the present home."""
        address = ensure_server(print)
        with connected(address):
            self.block.save(self.name)
        return Api(address.url, auth_string(server_files()))

    def launch(self, who: str, count: int, seconds: float, **environment: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(self.folder / "script.py"), who, self.notes, str(count), str(seconds)]
        env = {**os.environ, "TEST_CLUSTER": self.name, "SRF_PROGRESS": "off", **environment}
        self.started.append(subprocess.Popen(command, cwd=self.folder, env=env, stdout=subprocess.PIPE, text=True))
        return self.started[-1]

    def stranger(self, until: str) -> threading.Thread:
        command = ["python3.11", "-c", STRANGER, self.lock, self.notes, until]
        thread = threading.Thread(target=self.host.run, args=("alice", command), daemon=True)
        thread.start()
        return thread

    def lines(self) -> list[str]:
        text: str = self.host.path(self.notes).read_text()
        return text.splitlines()

    def one_at_a_time(self) -> list[str]:
        lines = self.lines()
        assert all(one.replace("begin", "end") == two for one, two in zip(lines[::2], lines[1::2], strict=True)), lines
        return [line.split()[1] for line in lines[::2]]


@pytest.fixture
def desi(server: Any, hosts_lab: Any, tmp_path: Path) -> Any:
    made = Desi(hosts_lab, tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()


def active(api: Api, desi: Desi) -> int:
    found = limits.read(api, limit_name(desi.name))
    return found.active if found else 0


def waiting(api: Api, desi: Desi) -> list[dict[str, Any]]:
    wanted = {"flow_runs": {"state": {"name": {"any_": [waiting_state(desi.name)]}}}}
    found: list[dict[str, Any]] = api.post("/flow_runs/filter", wanted)
    return found


def test_two_prefect_servers_and_a_stranger_share_one_host(desi: Desi, tmp_path: Path, monkeypatch: Any) -> None:
    ours = desi.register()
    other = {"SRF_HOME": str(tmp_path / "other"), "PREFECT_HOME": str(tmp_path / "other-prefect")}
    with monkeypatch.context() as patch:
        for name, value in other.items():
            patch.setenv(name, value)
        theirs = desi.register()
    try:
        first = desi.stranger(f"{desi.notes}.go")
        processes = [desi.launch("ours", 3, 0.5), desi.launch("theirs", 3, 0.5, **other)]
        wait_for(lambda: waiting(ours, desi) and waiting(theirs, desi), 120)
        assert "held by alice" in waiting(ours, desi)[0]["state"]["message"]
        assert active(ours, desi) == 1
        between = desi.stranger("/")  # comes while others wait, and has it for a moment
        desi.host.run("alice", ["touch", f"{desi.notes}.go"])
        first.join(60)
        for process in processes:
            assert process.communicate(timeout=150)[0].count("value") == 3
        between.join(60)
        order = desi.one_at_a_time()
        assert sorted(one.split("-")[0] for one in order) == ["ours"] * 3 + ["stranger"] * 2 + ["theirs"] * 3
        wait_for(lambda: active(ours, desi) == 0 and active(theirs, desi) == 0, 30)
    finally:
        with monkeypatch.context() as patch:
            patch.setenv("SRF_HOME", other["SRF_HOME"])
            stop_server()


def test_what_a_killed_client_held_comes_back_when_its_run_ends(desi: Desi) -> None:
    from slurm_ray_flow.blocks import slots

    api = desi.register()
    killed = desi.launch("killed", 1, 25)
    wait_for(lambda: desi.lines() == ["begin killed-0"], 90)
    killed.kill()
    killed.wait()
    [held] = [held for held in slots.noted() if held.limit == limit_name(desi.name)]
    while len(desi.lines()) < 2:
        assert active(api, desi) == 1
        time.sleep(1)
    wait_for(lambda: active(api, desi) == 0, 20)
    wait_for(lambda: api.get(f"/flow_runs/{held.run_id}")["state_type"] == "COMPLETED", 40)
