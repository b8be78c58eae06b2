"""`srf clusters`: all saved ones on one screen, also those that do not answer, and those that want a password."""

from __future__ import annotations

import json
import time
import uuid

import pytest

from hosts import faults

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
