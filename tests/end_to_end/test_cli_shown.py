"""What the command shows: filters, live tables, settings with their origins, colours where there is a terminal."""

import json
import re
import signal
import subprocess
import sys

import pytest

import prepared
from prepared import SRF
from support import wait_for
from terminal import Terminal

pytestmark = pytest.mark.server
TABLE = "from slurm_ray_flow.cli.output import STATES, print_table; print_table(['A', 'B'], [['one', 'ok']], STATES)"


def test_a_terminal_gets_colours_unless_they_are_not_wanted():
    terminals = [Terminal(sys.executable, "-c", TABLE, **variables) for variables in ({}, {"NO_COLOR": "1"})]
    try:
        assert [terminal.end() for terminal in terminals] == [0, 0]
        colours, none = (terminal.raw for terminal in terminals)
    finally:
        for terminal in terminals:
            terminal.close()
    assert "\x1b[32mok" in colours
    assert "\x1b[3" not in none
    piped = subprocess.run([sys.executable, "-c", TABLE], check=True, capture_output=True, text=True).stdout
    assert [line.split() for line in piped.splitlines()] == [["A", "B"], ["one", "ok"]]


def test_runs_are_filtered(work, srf):
    handle = work.triple.submit(3)
    handle.result(timeout=180)
    listed = json.loads(srf("runs", "--state", "succeeded", "--cluster", "local", "--last", "1", "--json").stdout)
    assert [one["run_id"] for one in listed] == [handle.run_id]
    assert srf("runs", "--cluster", "nowhere").stdout == "No such runs.\n"
    assert srf("runs", "--state", "asleep").returncode == 2


def test_a_live_table_follows_a_run_and_ends_well(work, tmp_path):
    mark = tmp_path / "pid"
    handle = work.sleep.submit(60, str(mark))
    wait_for(mark.exists)
    live = Terminal(SRF, "runs", "--watch", "--last", "1")
    piped = prepared.start([SRF, "runs", "--watch", "--last", "1", "--json"], stdout=subprocess.PIPE)
    try:
        live.until("running")
        assert json.loads(piped.stdout.readline())[0]["state"] == "running"
        handle.cancel()
        live.until("cancelled")
        (last,) = json.loads(piped.stdout.readline())
        assert (last["run_id"], last["state"]) == (handle.run_id, "cancelled")
        live.interrupt()
        piped.send_signal(signal.SIGINT)
        assert (live.end(), piped.wait(180)) == (130, 130)
        assert "Traceback" not in live.shown
        assert live.raw.rstrip().endswith("\x1b[?25h")  # the cursor is there again
    finally:
        piped.kill()
        live.close()


def test_each_setting_is_shown_with_its_origin(srf, tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.slurm-ray-flow]\nmemory = "2G"\nenv_vars = { TOKEN = "hush" }\n')
    (tmp_path / "theirs.py").write_text(
        "from slurm_ray_flow import slurm_ray_flow\n@slurm_ray_flow(nodes=1)\ndef function(): pass\n"
    )
    done = srf("config", "theirs.py:function", "--json", cwd=str(tmp_path), SRF_RETRIES="3")
    options = json.loads(done.stdout)["options"]
    assert options["memory"] == {"value": 2 * 1024**3, "from": "pyproject.toml [tool.slurm-ray-flow]"}
    assert options["nodes"]["from"] == "the code"
    assert options["retries"] == {"value": 3, "from": "SRF_RETRIES"}
    assert options["env_vars"]["value"] == ["TOKEN"]
    shown = srf("config", cwd=str(tmp_path), SRF_MEMROY="1G")
    assert re.search(r"memory +2.0 GiB +pyproject.toml", shown.stdout)
    assert "did you mean SRF_MEMORY?" in shown.stderr
    assert "hush" not in done.stdout + shown.stdout
    wrong = srf("config", cwd=str(tmp_path), SRF_NODES="two")
    assert (wrong.returncode, "SRF_NODES" in wrong.stderr) == (2, True)


def test_each_field_of_a_cluster_is_shown_with_its_origin(server, srf):
    assert srf("init", "origins", "--host", "box.example.org", "--slots", "2", "--overwrite").returncode == 0
    found = json.loads(srf("config", "--cluster", "origins", "--json").stdout)["block"]
    assert found["slots"] == {"value": 2, "from": "block origins"}
    assert found["host"] == {"value": "box.example.org", "from": "block origins"}
    assert found["wheels"] == {"value": "index", "from": "default"}
    assert re.search(r"slots +2 +block origins", srf("config", "--cluster", "origins").stdout)
    assert re.search(r"cluster +origins +--cluster", srf("config", "--cluster", "origins").stdout)
    srf("forget", "origins")


def test_what_is_configured_holds_for_a_run(server, srf, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.slurm-ray-flow.clusters.local]\nenv_vars = { FROM = "the project" }\n'
    )
    (tmp_path / "shows.py").write_text("import os\ndef shows():\n    return os.environ['FROM']\n")
    done = srf("run", "shows.py:shows", cwd=str(tmp_path), SRF_PROGRESS="plain", SRF_MEMROY="1G")
    assert done.stdout == "'the project'\n", done.stderr
    assert done.stderr.count("did you mean SRF_MEMORY?") == 1
