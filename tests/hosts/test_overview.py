"""`srf clusters` and `srf runs`: all on one screen, also where one cluster does not answer or wants a password."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from typing import Any

import pytest

import prepared
from hosts import faults
from prepared import SRF
from slurm_ray_flow.blocks import store
from slurm_ray_flow.core.run import RunRecord
from terminal import Terminal

pytestmark = pytest.mark.server


def test_what_does_not_answer_hides_nobody(server, srf, hosts_lab, slurm_lab):
    mark = uuid.uuid4().hex[:8]
    known = ["--known-hosts", str(hosts_lab.known_hosts)]
    alice = ["--user", "alice", "--key-file"]
    slurm = ["--slurm", "--known-hosts", str(slurm_lab.known_hosts), *alice, str(slurm_lab.key("alice"))]
    hosts = {
        "up": [hosts_lab["desi"].address, *alice, str(hosts_lab.key("alice")), *known],
        "cut": [hosts_lab["offline"].address, *alice, str(hosts_lab.key("alice")), *known],
        "shut": [hosts_lab["desi"].address, "--port", "9", *known],
        "asks": [hosts_lab["desi"].address, "--user", "bob", *known],
        "jobs": [slurm_lab["login"].address, *slurm],
    }
    for name, (host, *options) in hosts.items():
        assert srf("init", f"{mark}-{name}", "--host", host, *options).returncode == 0
    with faults.cut(hosts_lab["offline"]):
        began = time.monotonic()
        done = srf("clusters", "--json")
        took = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert took < 40
    shown = {one["name"]: one["load"] for one in json.loads(done.stdout)}
    states = {name: shown[f"{mark}-{name}"]["state"] for name in hosts}
    assert states == {"up": "up", "cut": "away", "shut": "away", "asks": "locked", "jobs": "up"}
    assert (shown[f"{mark}-up"]["slots"], shown[f"{mark}-up"]["waiting"]) == (1, 0)
    assert (shown[f"{mark}-jobs"]["partition"], shown[f"{mark}-jobs"]["cpus"]) == ("cpu", 8)
    assert shown["local"]["cpus"] > 0
    offline = srf("clusters", "--offline")
    assert all(f"{mark}-{name}" in offline.stdout for name in hosts)
    assert "STATE" not in offline.stdout


def test_runs_on_a_cluster_that_does_not_answer_hide_no_others(server, srf, hosts_lab):
    name = f"cut-{uuid.uuid4().hex[:8]}"
    host = [hosts_lab["offline"].address, "--user", "alice", "--key-file", str(hosts_lab.key("alice"))]
    assert srf("init", name, "--host", *host, "--known-hosts", str(hosts_lab.known_hosts)).returncode == 0
    away, there = record(name, "ssh-server"), record("local", "local-machine", ended="succeeded")
    with faults.cut(hosts_lab["offline"]):
        watching = watched()
        began = time.monotonic()
        once = srf("runs", "--last", "2", "--json")
        assert time.monotonic() - began < 25, "8 s are allowed, and a busy machine"
        states = {one["run_id"]: (one["state"], bool(one["why"])) for one in json.loads(once.stdout)}
        assert states == {away: ("not known", True), there: ("succeeded", False)}
        assert name in once.stderr
        assert json.loads(watching.stdout.readline())[1]["state"] == "not known"
    later = json.loads(watching.stdout.readline())
    assert (later[1]["run_id"], later[1]["state"]) == (away, "lost")
    watching.kill()
    watching.communicate()


def watched() -> Any:
    pipe = subprocess.PIPE
    return prepared.start([SRF, "runs", "--last", "2", "--json", "--watch"], stdout=pipe, stderr=pipe)


def record(cluster, kind, ended=""):
    """A run whose launch is gone."""
    run_id = str(uuid.uuid4())
    names = ("run_id", "flow_run_id", "attempt", "allocation")
    known: dict[str, Any] = {**dict.fromkeys(names, run_id), "root": f"/tmp/{run_id}", "function": "f"}
    store.save_record(RunRecord(**known, cluster=cluster, kind=kind, pid=0, started=0, boot_id="", ended=ended))
    return run_id


def test_in_a_terminal_runs_asks_for_what_a_cluster_wants_to_know(server, srf, hosts_lab):
    name = f"asks-{uuid.uuid4().hex[:8]}"
    known = ["--user", "bob", "--known-hosts", str(hosts_lab.known_hosts)]
    assert srf("init", name, "--host", hosts_lab["desi"].address, *known).returncode == 0
    record(name, "ssh-server")
    terminal = Terminal(SRF, "runs", "--cluster", name)
    try:
        terminal.answer("Password of bob", hosts_lab.password("bob"))
        assert terminal.end() == 0
    finally:
        terminal.close()
    assert "lost" in terminal.shown
    assert "not known" not in terminal.shown
