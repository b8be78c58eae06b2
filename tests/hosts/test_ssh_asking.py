"""Whom a code is asked for: the terminal, or the UI of Prefect; and `srf trust`, which asks about a key."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.blocks.ssh import known_hosts
from support import wait_for

LOG_IN = """
import sys
from prefect import flow, task
from slurm_ray_flow import SshConnection
def log_in():
    connection = SshConnection(host="desi", user="carol", config_file=sys.argv[1])
    print("in as", connection.agent("~/asked", label="desi").hello["user"], flush=True)
"""


@pytest.mark.server
def test_without_a_terminal_a_code_is_asked_for_in_prefect(hosts_lab, server):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState
    from prefect.client.schemas.filters import FlowRunFilterStateName as StateName
    from prefect.flow_runs import resume_flow_run

    name = f"asking-{os.getpid()}"
    script = f"{LOG_IN}\nfrom slurm_ray_flow.blocks import server\nserver.connect(server.ensure_server(print))\n"
    script += f"flow(name={name!r})(lambda: task(log_in)())()\n"
    environment = {**os.environ, "DESI_PASSWORD": hosts_lab.password("carol")}
    command = [sys.executable, "-c", script, str(hosts_lab.ssh_config)]
    asking = subprocess.Popen(
        command, env=environment, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with connected(server), get_client(sync_client=True) as client:
        state = FlowRunFilter(state=FlowRunFilterState(name=StateName(any_=["Paused"])))
        ours = FlowFilter(name=FlowFilterName(any_=[name]))
        paused = []

        def pausing():
            paused[:] = client.read_flow_runs(flow_filter=ours, flow_run_filter=state)
            return paused or asking.poll() is not None

        wait_for(pausing)
        assert paused, asking.communicate()[0]
        resume_flow_run(paused[0].id, run_input={"answer": hosts_lab["desi"].new_code("carol")})
    said = asking.communicate(timeout=180)[0]
    assert "in as carol" in said
    assert environment["DESI_PASSWORD"] not in said


def test_in_a_terminal_a_code_is_asked_for_there(hosts_lab):
    pid, terminal = pty.fork()
    if not pid:
        os.environ["DESI_PASSWORD"] = hosts_lab.password("carol")
        os.execv(sys.executable, [sys.executable, "-c", f"{LOG_IN}\nlog_in()", str(hosts_lab.ssh_config)])
    said = _until(terminal, b"One-time code: ")
    os.write(terminal, hosts_lab["desi"].new_code("carol").encode() + b"\n")
    said += _until(terminal, b"in as carol")
    os.waitpid(pid, 0)
    assert hosts_lab.password("carol").encode() not in said


def test_trust_shows_a_fingerprint_and_makes_the_key_known(hosts_lab, tmp_path):
    known = tmp_path / "ssh" / "known_hosts"
    show = """
import sys
from slurm_ray_flow import SshConnection
block = SshConnection(host="inner", user="frank", config_file=sys.argv[1], known_hosts=sys.argv[2])
for shown in block.trust(lambda shown: True): print(shown.name, shown.fingerprint, shown.known)
print(block.agent("~/trusted", label="inner").hello["host"])
"""
    command = [sys.executable, "-c", show, str(hosts_lab.ssh_config), str(known)]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert [line.split()[-1] for line in first.splitlines()] == ["False", "False", "inner"]
    assert [line.split()[-1] for line in second.splitlines()] == ["True", "True", "inner"]
    listed = subprocess.run(["ssh-keygen", "-l", "-f", str(known)], capture_output=True, text=True, check=True).stdout
    assert all(line.split()[1] in listed for line in first.splitlines()[:2])
    assert known.stat().st_mode & 0o777 == 0o600
    assert len(known_hosts.read([known])) == 2


def _until(terminal: int, word: bytes) -> bytes:
    said = b""
    while word not in said:
        said += os.read(terminal, 1024)
    return said
