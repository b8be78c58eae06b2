"""The `srf` command against the session's server: `started` is it as a shell starts it, `srf` with its imports done."""

import functools
import json
import operator
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from prepared import SRF
from slurm_ray_flow.blocks.server import connected
from slurm_ray_flow.core.home import home
from slurm_ray_flow.core.run import RunRecord
from srf_command import Command
from support import wait_for

pytestmark = pytest.mark.server

JOB = """
from ..base import two

def job(n, text="nothing"):
    print("job", n, text)
    return n * two()

async def later(n):
    return n + 1

class Boom(Exception):
    pass

def boom():
    raise Boom("loud")
"""


srf = Command()


def started(*arguments, cwd=None, **changes):
    return subprocess.run(
        [SRF, *arguments],
        check=False,
        cwd=cwd,
        env={**os.environ, **changes},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture
def package(server, tmp_path):
    """A folder with a module inside a package that imports its sibling relatively."""
    folder = tmp_path / "pack" / "inner"
    folder.mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (tmp_path / "pack" / "base.py").write_text("def two():\n    return 2\n")
    (folder / "job.py").write_text(JOB)
    return tmp_path


@pytest.fixture
def asleep(work, tmp_path):
    """A run that sleeps for a minute; it is cancelled at the end."""
    mark = tmp_path / "pid"
    handle = work.sleep.submit(60, str(mark))
    wait_for(mark.exists)
    yield handle
    handle.cancel()


def test_help_is_complete_and_imports_no_prefect():
    check = "import sys, slurm_ray_flow.cli.main; sys.exit(bool({'prefect', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    shown = started("--help").stdout
    verbs = (
        "check clean clusters forget init queue trust attach cancel dashboard fetch logs release run runs grid "
        "completion config down prefect status up"
    )
    assert " ".join(re.findall(r"^  ([a-z]+): ", shown, re.MULTILINE)) == verbs


def test_each_verb_has_examples_that_are_commands():
    from slurm_ray_flow.cli.main import app

    options = {"--help", "-h", "--version"}
    verbs = [(verb,) for verb in set(app) - options] + [("grid", verb) for verb in set(app["grid"]) - options]
    for verb in verbs:
        command = functools.reduce(operator.getitem, verb, app)
        lines = [line.strip() for line in (command.help_epilogue or "").splitlines()[1:]]
        assert lines, verb
        for line in lines:
            words = shlex.split(line.partition("srf ")[2].partition(">")[0].rstrip(")"))
            app.parse_args(words, print_error=False, exit_on_error=False)
            assert tuple(words[: len(verb)]) == verb
            assert any(command.help), verb


def test_prefects_own_command_knows_the_server(server):
    assert "deploy" in started("prefect", "--help").stdout
    assert "--prefect-file" in started("prefect", "deploy", "--help").stdout
    shown = json.loads(started("prefect", "config", "view", "--output", "json").stdout)
    assert server.url in json.dumps(shown)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_verbs(shell):
    assert "clusters" in srf("completion", shell).stdout


def test_logs_as_json(work):
    handle = work.triple.submit(5)
    handle.result(timeout=180)
    document = json.loads(srf("logs", handle.run_id, "--json").stdout)
    assert document == {"run_id": handle.run_id, "state": "succeeded", "lines": ["tripling 5"]}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(["statsu"], "status"), (["logs"], "RUN"), (["attach", "zzz"], "srf runs"), (["run", "f"], "file.py:function")],
)
def test_a_wrong_command_line_is_2_and_says_what_to_write(arguments, hint):
    done = srf(*arguments)
    assert done.returncode == 2
    assert hint.lower() in (done.stdout + done.stderr).lower()
    assert "Traceback" not in done.stderr
    assert not set("│╭") & set(done.stdout + done.stderr)


@pytest.mark.parametrize("run_id", ["", "../runs", "/", "zzz"])
def test_what_is_no_run_is_refused(server, run_id):
    from slurm_ray_flow import Handle, UnknownRunError

    with pytest.raises(UnknownRunError, match="srf runs"):
        Handle.attach(run_id)


def test_a_function_of_a_package_runs(package):
    done = started("run", "pack/inner/job.py:job", "--arg", "n=3", "--arg", "text=word", cwd=package)
    assert done.stdout.splitlines() == ["job 3 word", "6"], done.stderr


def test_json_has_standard_output_for_itself(package):
    done = srf("run", "pack/inner/job.py:job", "--arg", 'n=[1, "a"]', "--json", cwd=package)
    assert json.loads(done.stdout) == {"value": [1, "a", 1, "a"]}
    assert "job [1, 'a'] nothing" in done.stderr


def test_an_async_function_runs_in_silence(package):
    done = srf("run", "pack/inner/job.py:later", "--arg", "n=3", cwd=package)
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_the_functions_exception_is_shown_with_its_traceback(package):
    done = started("run", "pack/inner/job.py:boom", cwd=package)
    assert done.returncode == 1
    assert "Boom: loud" in done.stderr
    assert 'raise Boom("loud")' in done.stderr
    assert "cyclopts" not in done.stderr
    done = srf("run", "pack/inner/job.py:boom", "--json", cwd=package)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"error": {"type": "Boom", "cause": "user_code", "message": "loud"}}


def test_runs_lists_states_and_times(work):
    work.triple(1)
    handle = work.triple.submit(2)
    handle.result(timeout=180)
    (newest,) = json.loads(srf("runs", "--limit", "1", "--json").stdout)
    assert newest["run_id"] == handle.run_id
    assert newest["state"] == "succeeded"
    assert 0 < newest["seconds"] < 60
    lines = srf("runs", "-n", "2").stdout.splitlines()
    assert lines[0].split() == ["RUN", "FUNCTION", "CLUSTER", "STATE", "STARTED", "TOOK"]
    assert lines[1].split()[:4] == [handle.run_id[:8], "triple", "local", "succeeded"]
    assert len(lines) == 3


def test_a_run_that_was_refused_has_failed(work):
    from slurm_ray_flow import Handle, Rejected, RunError
    from slurm_ray_flow.blocks import store

    with pytest.raises(Rejected):
        work.triple.with_options(cpus_per_node=10_000)(1)
    newest = next(store.records()).run_id
    assert Handle.attach(newest).status().value == "failed"
    with pytest.raises(RunError, match="cpus_per_node=10000"):
        Handle.attach(newest).result(timeout=180)


def test_a_run_whose_value_was_known_has_succeeded(work):
    from slurm_ray_flow import Handle
    from slurm_ray_flow.blocks import store

    value = work.moment(77)
    first = next(store.records()).run_id
    assert work.moment(77) == value
    newest = next(store.records()).run_id
    assert newest != first
    assert Handle.attach(newest).result(timeout=180) == value


def test_one_field_of_a_saved_server_is_changed_and_the_rest_stays(server):
    from slurm_ray_flow import SshServer

    name = f"changed-{uuid.uuid4().hex[:8]}"
    assert srf("init", name, "--host", "there", "--password-from-env", "ITS", ITS="secret").returncode == 0
    assert srf("init", name, "--slots", "4", "--user", "alice", "--change").returncode == 0
    with connected(server):
        found = SshServer.load(name)
    assert (found.slots, found.connection.host, found.connection.user) == (4, "there", "alice")
    assert found.connection.password.get_secret_value() == "secret"
    assert "no cluster" in srf("init", "never-saved", "--slots", "4", "--change").stderr
    assert srf("init", "Bad_Name", "--host", "there").stderr.count("\n") == 2


ANOTHER_PROCESS = """
import sys
from slurm_ray_flow.blocks import store
from slurm_ray_flow.blocks.clusters import cluster_of
print(cluster_of(store.find_record(sys.argv[1])).connection.host)
"""


def test_a_saved_cluster_is_forgotten(server):
    name = f"gone-{secrets.token_hex(4)}"
    assert srf("init", name, "--host", "there.example.org").returncode == 0
    record = RunRecord(name, "", name, "ssh-server", "/r", name, name, "m:f", 1, 1, "b")
    runs = home() / "runs"
    runs.mkdir(exist_ok=True)
    (runs / f"{name}.json").write_text(record.to_json())
    refused = srf("forget", name)
    assert refused.returncode == 2 and "--force" in refused.stderr
    assert srf("forget", name, "--force").returncode == 0
    (runs / f"{name}.json").unlink()
    assert "there is no cluster" in srf("forget", name).stderr
    assert srf("init", name, "--host", "elsewhere.example.org").returncode == 0  # the name is free again
    assert srf("forget", name).returncode == 0
    assert srf("forget", "local").returncode == 2


def test_any_process_finds_the_saved_cluster_of_a_run(server, script):
    from slurm_ray_flow.blocks import store
    from slurm_ray_flow.core.run import RunRecord

    name = f"elsewhere-{uuid.uuid4().hex[:8]}"
    assert srf("init", name, "--host", "elsewhere.example.org").returncode == 0
    run_id = str(uuid.uuid4())
    rest = {"function": "work:triple", "pid": 1, "started": None, "boot_id": None}
    store.save_record(RunRecord(run_id, run_id, name, "ssh-server", "/root", run_id, run_id, **rest))
    try:
        done = script(ANOTHER_PROCESS, run_id)
    finally:
        store.record_path(run_id).unlink()
    assert done.stdout == "elsewhere.example.org\n", done.stderr
    assert "temporary server" not in done.stderr


def test_logs_and_attach_of_a_run_that_has_ended(work):
    handle = work.triple.submit(5)
    assert handle.result(timeout=180) == 15
    assert srf("logs", handle.run_id[:13]).stdout == "tripling 5\n"
    attached = srf("attach", handle.run_id)
    assert attached.stdout.splitlines() == ["tripling 5", f"run {handle.run_id[:8]} gave 15"]
    assert json.loads(srf("attach", handle.run_id, "--json").stdout) == {
        "run_id": handle.run_id,
        "state": "succeeded",
        "value": 15,
    }
    assert json.loads(srf("cancel", handle.run_id, "--json").stdout)["cancelled"] is False


def test_a_closed_pipe_is_no_error(work):
    handle = work.chatter.submit(20_000)
    assert handle.result(timeout=180) == 20_000
    shell = f"set -o pipefail; {SRF} logs {handle.run_id} | head -n 1"
    done = subprocess.run(["bash", "-c", shell], check=False, capture_output=True, text=True, timeout=180)
    assert done.stdout == "line 0\n"
    assert done.stderr == ""
    assert done.returncode == 141


def test_leaving_attach_leaves_the_run(asleep):
    attached = subprocess.Popen(
        [SRF, "attach", asleep.run_id], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert attached.stdout.readline() == "asleep\n"
    attached.send_signal(signal.SIGINT)
    _, stderr = attached.communicate(timeout=180)
    assert attached.returncode == 130
    assert "srf attach" in stderr
    assert "Traceback" not in stderr
    assert asleep.status().value == "running"


def test_cancel_ends_the_run_and_attach_says_so(asleep):
    done = started("cancel", asleep.run_id)
    assert done.returncode == 0, done.stderr
    assert "is cancelled" in done.stdout
    assert asleep.status().value == "cancelled"
    document = json.loads(srf("attach", asleep.run_id, "--json").stdout)
    assert (document["state"], document["error"]["cause"]) == ("cancelled", "cancelled")


def test_status_without_a_server_is_1_and_makes_nothing(tmp_path):
    home = tmp_path / "none"
    done = started("status", "--json", SRF_HOME=str(home))
    assert (done.returncode, json.loads(done.stdout)["state"]) == (1, "stopped")
    assert json.loads(srf("runs", "--json", SRF_HOME=str(home)).stdout) == []
    assert not home.exists()


def test_a_runs_page_is_opened_in_the_browser(work, tmp_path):
    handle = work.nothing.submit()
    handle.result(180)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/led')
    browser.chmod(0o755)
    done = srf("up", "--open", handle.run_id[:8], BROWSER=f"{browser} %s")
    assert done.returncode == 0
    assert "bookmark" in done.stderr
    local = Path((tmp_path / "led").read_text().strip().removeprefix("file://"))
    assert f"?run={handle.run_id}#" in local.read_text()
    assert local.stat().st_mode & 0o777 == 0o600
    assert done.stdout.endswith(f"?run={handle.run_id}\n")


def test_without_a_browser_another_way_is_told(work):
    done = srf("up", "--open", BROWSER="/bin/false %s")
    assert done.returncode == 0
    assert "No browser" in done.stderr
    assert "secret" in done.stdout and "--open" not in done.stdout + done.stderr


def test_nothing_is_reported_to_prefects_makers(work, tmp_path):
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path)}
    environment.pop("DO_NOT_TRACK")
    launch = [sys.executable, "-c", "import work; print(work.triple(1))"]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=180, check=True)
    assert done.stdout.splitlines()[-1] == "3"
    assert not (tmp_path / ".sdk_telemetry").exists()


def test_status_of_the_sessions_server(server):
    found = json.loads(started("status", "--json").stdout)
    assert (found["state"], found["url"]) == ("running", server.url)
    assert json.loads(srf("up", "--json").stdout)["url"] == server.url
