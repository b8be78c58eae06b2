"""SRF_LOG=debug on a real server: each operation is seen, and no secret."""

import json
import re
import uuid

import pytest

pytestmark = pytest.mark.server

FUNCTION = """
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(env_vars={{"TOKEN": {secret!r}}})
def function():
    import os
    return len(os.environ["TOKEN"])
"""


def test_operations_are_seen_and_no_secret(server, srf, hosts_lab, tmp_path):
    name, secret = f"traced-{uuid.uuid4().hex[:8]}", f"planted-{uuid.uuid4().hex}"
    login = ["--user", "bob", "--known-hosts", str(hosts_lab.known_hosts)]
    assert srf("init", name, "--host", hosts_lab["desi"].address, *login).returncode == 0
    variable = name.upper().replace("-", "_") + "_PASSWORD"
    password = hosts_lab.password("bob")
    checked = srf("check", name, SRF_LOG="debug", **{variable: password})
    assert checked.returncode == 0, checked.stderr
    assert re.search(rf"^\d\d:\d\d:\d\d\.\d{{3}}  {name} +[\d.]+ ms  connects to bob@", checked.stderr, re.MULTILINE)
    assert re.search(rf"{name} +[\d.]+ ms  probe.all /home/bob/.slurm-ray-flow", checked.stderr)
    assert password not in checked.stdout + checked.stderr
    (tmp_path / "theirs.py").write_text(FUNCTION.format(secret=secret))
    run = srf("run", "theirs.py:function", "--json", cwd=str(tmp_path), SRF_LOG="debug")
    assert json.loads(run.stdout) == {"value": len(secret)}, run.stderr
    assert re.search(r"local +[\d.]+ ms  runs.submit ", run.stderr)
    assert secret not in run.stdout + run.stderr
