"""Two machines with one home: one Prefect server, and neither takes the other's processes for dead."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from hosts.twin import twins
from prepared import SRF
from shared_server import begin_empty
from support import wait_for

SCRIPT = """
import sys, time
from pathlib import Path
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(cluster="local")
def doubled(number, waits_for=""):
    while waits_for and not Path(waits_for).exists():
        time.sleep(0.1)
    return number * 2

print(doubled(int(sys.argv[1]), *sys.argv[2:]))
"""
BY_SSH = "mkdir -p {home} && sshfs -F {config} -o idmap=user alice@bastion:{there} {home}"


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_one_server_and_nobody_else_ends_what_lives(hosts_lab, tmp_path, script):
    word = tmp_path / "word"
    begin_empty(tmp_path / "shared")
    with twins(hosts_lab, ["desi", "offline"], tmp_path, tmp_path / "shared") as (one, other):
        waits = one.python(script, "4", str(word))
        wait_for(lambda: states(one) == ["running"])
        at_once = [other.python(script, "21"), one.python(script, "22")]
        assert [process.communicate(timeout=180)[0] for process in at_once] == ["42\n", "44\n"]
        assert states(other) == states(one) == ["running", "succeeded", "succeeded"]
        assert flow_states(other) == {"completed": 2, "running": 1}
        assert "desi's" in other.srf("down")
        assert flow_states(one) == {"completed": 2, "running": 1}
        word.touch()
        assert waits.communicate(timeout=180)[0] == "8\n"

        one.kill()  # the server, too
        assert other.python(script, "3").communicate(timeout=180)[0] == "6\n"
        assert flow_states(other) == {"completed": 4}
        assert one.python(script, "5").communicate(timeout=180)[0] == "10\n"
        assert states(one) == states(other) == ["succeeded"] * 5
        other.srf("down")


def test_a_tunnel_to_a_server_that_died_with_its_host_costs_no_launch(hosts_lab, tmp_path, script):
    with twins(hosts_lab, ["desi", "offline"], tmp_path, tmp_path / "shared") as (one, other):
        one.srf("up")
        other.srf("up")
        one.kill()
        launched = other.python(script, "21")
        assert launched.communicate(timeout=120)[0] == "42\n"
        other.srf("down")


def test_where_no_way_leads_to_the_server_it_says_who_has_it(hosts_lab, tmp_path):
    begin_empty(tmp_path / "shared")
    with twins(hosts_lab, ["desi", "offline"], tmp_path, tmp_path / "shared") as (one, other):
        one.srf("up")
        other.run("mount", "--bind", "/dev/null", "/etc/ssh/ssh_config")
        process = other.start(SRF, "up")
        errors = process.communicate(timeout=180)[1]
        assert process.returncode == 1
        assert "runs on desi" in errors and "export SRF_HOME=" in errors and "Traceback" not in errors
        one.srf("down")


def test_a_network_file_system_without_locks_across_hosts_holds_no_database(hosts_lab, tmp_path, script):
    home, there = tmp_path / "shared", "/home/alice/shared-home"
    hosts_lab["bastion"].run("alice", ["mkdir", "-p", there])
    quoted = {"config": hosts_lab.ssh_config, "home": home, "there": there}
    mounts = BY_SSH.format(**{name: shlex.quote(str(text)) for name, text in quoted.items()})
    with twins(hosts_lab, ["desi", "offline"], tmp_path, home, mounts) as (one, other):
        at_once = [one.python(script, "21"), other.python(script, "22")]
        assert [process.communicate(timeout=180)[0] for process in at_once] == ["42\n", "44\n"]
        assert states(one) == states(other) == ["succeeded", "succeeded"]
        noted = json.loads(one.run("cat", f"{home}/server/database.json"))
        owner = next(twin for twin in (one, other) if twin.host.name == noted["host"])
        assert owner.run("find", noted["folder"], "-name", "prefect.db").split()
        owner.srf("down")
        assert owner.run("find", str(home), "-name", "prefect.db*").split() == [f"{home}/server/prefect/prefect.db"]
        assert not Path(noted["folder"]).exists()
        second = next(twin for twin in (one, other) if twin is not owner)
        second.srf("up")
        assert flow_states(second) == {"completed": 2}
        second.srf("down")
    shutil.rmtree(hosts_lab["bastion"].path(there))


def states(twin):
    return sorted(run["state"] for run in json.loads(twin.srf("runs", "--json")))


def flow_states(twin):
    """How many runs are in which state, as Prefect has it."""
    return json.loads(twin.srf("status", "--json"))["runs"]
