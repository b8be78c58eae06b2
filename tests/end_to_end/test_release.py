"""`srf release` and what `srf runs` shows of a warm cluster, on this machine."""

import json
import secrets
import threading
import time
from pathlib import Path

import pytest

from slurm_ray_flow import LocalMachine, slurm_ray_flow
from slurm_ray_flow.interface.session import Launching
from support import Noting, wait_for

pytestmark = pytest.mark.server


@slurm_ray_flow(keep_warm="5m", cpus_per_node=1)
def quick(go=None):
    if go:
        Path(go + ".runs").touch()
        while not Path(go).exists():
            time.sleep(0.02)
    return 42


@pytest.fixture
def warm(server, tmp_path):
    """A root folder of this test's own with an allocation that is warm; the function, and the id of its run."""
    function = quick.with_options(cluster=LocalMachine(root=tmp_path / "root"), name=f"q{secrets.token_hex(3)}")
    handle = function.submit()
    assert handle.result(180) == 42
    wait_for(lambda: "idle" in events(tmp_path, handle.run_id))
    yield function, handle.run_id
    (tmp_path / "root" / "runs" / handle.run_id / "cancel").touch()
    wait_for(lambda: "released" in events(tmp_path, handle.run_id))


def events(folder, run_id):
    return (folder / "root" / "runs" / run_id / "events.jsonl").read_text()


def shown(srf, run_id):
    [found] = [run for run in json.loads(srf("runs", "--json", "-n", "50").stdout) if run["run_id"] == run_id]
    return found


def test_a_warm_run_is_shown_with_its_cost_and_released(warm, srf):
    _, run_id = warm
    found = shown(srf, run_id)
    assert (found["state"], found["ended"], found["warm"]["core_hours_an_hour"]) == ("warm", "succeeded", 1)
    assert "warm, 1 core-hour an hour" in srf("runs", "-n", "50").stdout
    said = srf("release", run_id[:8])
    assert said.returncode == 0
    assert f"released run {run_id[:8]}" in said.stdout
    assert "idled" in said.stdout
    assert "core-hours" in said.stdout
    found = shown(srf, run_id)
    assert (found["state"], found["warm"]) == ("succeeded", None)


@pytest.mark.parametrize(
    ("options", "word"), [({"memory": "1G"}, "memory"), ({"env_vars": {"A": "secret"}}, "env_vars")]
)
def test_why_a_warm_run_is_not_joined_is_said(warm, srf, options, word):
    function, run_id = warm
    shown = Noting()
    other = function.with_options(name=f"q{secrets.token_hex(3)}", **options)
    assert other.call(Launching(shown), (), {}) == 42
    [line] = [text for text in shown.said if "not joined" in text]
    assert run_id[:8] in line
    assert word in line
    assert "secret" not in line
    assert srf("release", "--all").returncode == 0


def test_one_that_has_a_call_is_left_alone_unless_it_is_forced(warm, srf, tmp_path):
    function, run_id = warm
    go = str(tmp_path / "go")
    second = function.submit(go)
    wait_for(Path(go + ".runs").exists)
    said = srf("release", run_id[:8])
    assert said.returncode == 1
    assert "it has a call" in said.stdout
    said = srf("release", run_id[:8], "--force", "--json")
    [ended] = json.loads(said.stdout)
    assert ended["released"] is True
    assert second.status().value == "cancelled"


def test_a_call_that_comes_meanwhile_gets_its_value(warm, srf):
    """Whichever is first: it joins the warm cluster, or gets one of its own, which stays."""
    function, run_id = warm
    values = []
    thread = threading.Thread(target=lambda: values.append(function()))
    thread.start()
    srf("release", run_id[:8])
    thread.join(180)
    assert values == [42]
    srf("release", "--all")


@pytest.mark.parametrize("arguments", [(), ("one", "--all")])
def test_what_is_to_be_released_must_be_said(srf, server, arguments):
    said = srf("release", *arguments)
    assert said.returncode == 2
    assert "--all" in said.stderr


def test_an_unknown_one_is_an_error(srf, server):
    said = srf("release", "0nowhere")
    assert said.returncode == 2
    assert "srf runs" in said.stderr
