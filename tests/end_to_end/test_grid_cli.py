"""`srf grid`: a campaign from the command line, from its beginning to its removal."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

import prepared
from slurm_ray_flow.grid.campaign_folder import CampaignFolder
from srf_command import Command
from support import wait_for

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("engine")]

FUNCTION = """
from pathlib import Path
from slurm_ray_flow import slurm_ray_flow

@slurm_ray_flow(ray="never", cpus_per_node=2)
def root(number: float, name: str = "x", folder: str = "") -> float:
    print("root of", number, name)
    if number < 0 and not Path(folder, "mended").exists():
        raise ValueError(f"no root of {number}")
    while number == 99 and not Path(folder, "go").exists():
        pass
    return abs(number) ** 0.5
"""


@pytest.fixture
def grid(tmp_path):
    (tmp_path / "roots.py").write_text(FUNCTION)

    def call(*words, code=0):
        done = Command()("grid", *words, cwd=str(tmp_path))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return call


def test_a_campaign_from_the_command_line(grid, tmp_path):
    (tmp_path / "values.csv").write_text("number,name\n4,007\n-9,b\n16,c\n")
    same = f"folder={tmp_path}"
    words = (
        "submit",
        "roots.py:root",
        "--values",
        "values.csv",
        "--clusters",
        "local",
        "--arg",
        same,
        "--name",
        "roots",
    )
    assert "roots would have 3 items" in (said := grid(*words, "--dry-run")) and "Nothing was begun" in said
    begun = json.loads(grid(*words, "--json"))
    campaign = begun["id"][:10]
    assert (begun["total"], begun["name"], [share["cluster"] for share in begun["clusters"]]) == (3, "roots", ["local"])
    *_, last = map(json.loads, grid("watch", campaign, "--json", code=1).splitlines())
    assert (last["state"], last["succeeded"], last["failed"]) == ("failed", 2, 1)
    assert grid("results", campaign).splitlines()[::2] == ["0\t2.0", "2\t4.0"]
    assert grid("logs", campaign, "0") == "root of 4.0 007\n"
    assert "ValueError: no root of -9.0" in grid("explain", campaign, "1")
    assert "3 rows" in grid("results", campaign, "--to", "out.csv")
    assert (tmp_path / "out.csv").read_text().count("\n") == 4
    [event] = json.loads(grid("events", campaign, "--json"))
    (tmp_path / "mended").touch()
    assert "1 items run again" in grid("fix", str(event["id"]), "--resubmit")
    assert json.loads(grid("events", campaign, "--json")) == []
    grid("watch", campaign)
    values = [json.loads(line)["value"] for line in grid("results", campaign, "--wait", "--json").splitlines()]
    assert values == [2.0, 3.0, 4.0]
    assert "0 items" in grid("resubmit", campaign, "--item", "0")
    wait_for(lambda: Command()("grid", "purge", campaign, cwd=str(tmp_path)).returncode == 0)
    assert not CampaignFolder(begun["id"]).path.exists()
    grid("stat", campaign, code=2)


def test_items_are_added_and_watching_ends_alone(grid, tmp_path):
    (tmp_path / "values.jsonl").write_text('{"number": 99}\n' * 3)
    same = f"folder={tmp_path}"
    text = grid("submit", "roots.py:root", "--values", "values.jsonl", "--arg", same, "--max-queued", "2")
    campaign = text.split()[1]
    assert json.loads(grid("stat", campaign, "--json"))["options"]["max_queued"] == 2
    assert "Added 3 items" in grid("add", campaign, "--values", "values.jsonl")
    grid("purge", campaign, code=1)
    wait_for(lambda: "at pilot" in grid("explain", campaign, "0"))
    assert "can be read when" in grid("logs", campaign, "0")
    watching = subprocess.Popen([prepared.SRF, "grid", "watch", campaign], stdout=subprocess.PIPE, text=True)
    assert campaign in watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    assert watching.wait(60) == 130
    watching.stdout.close()
    assert f"{campaign} is paused" in grid("pause", campaign)
    assert "paused" in grid("explain", campaign, "5") or "at pilot" in grid("explain", campaign, "5")
    assert "1 items" in grid("cancel", campaign, "--item", "5")
    assert "was cancelled" in grid("explain", campaign, "5")
    assert "1 items" in grid("resubmit", campaign, "--item", "5")
    grid("resume", campaign)
    Path(tmp_path, "go").touch()
    grid("watch", campaign)
    assert len(grid("results", campaign).splitlines()) == 6


def test_a_campaign_by_a_description_of_cigri_s(grid, tmp_path):
    (tmp_path / "hello.sh").write_text('echo "hello $1"; [ "$1" != bad ]\n')
    (tmp_path / "lines.txt").write_text("a 'x y'\nbad\nc\n\n")
    fields = {
        "name": "hello",
        "param_file": "lines.txt",
        "prologue": ["echo $PWD {OAR_JOB_ID} > before", "true"],
        "epilogue": ["mv before {CAMPAIGN_ID}"],
        "epilogue_walltime": "00:01:00",
        "clusters": {"local": {"exec_file": "sh hello.sh", "exec_directory": str(tmp_path), "max_jobs": 1}},
    }
    (tmp_path / "campaign.json").write_text(json.dumps(fields))
    plan = json.loads(grid("submit", "--jdl", "campaign.json", "--dry-run", "--json"))
    assert (plan["items"], plan["pilots"][0]["scripts"]) == (3, ["epilogue", "prologue"])
    begun = json.loads(grid("submit", "--jdl", "campaign.json", "--json"))
    assert (begun["name"], begun["total"], begun["clusters"][0]["options"]) == ("hello", 3, {"max_pilots": 1})
    *_, last = map(json.loads, grid("watch", begun["id"], "--json", code=1).splitlines())
    assert (last["succeeded"], last["failed"]) == (2, 1)
    assert grid("logs", begun["id"], "0") == "hello a\n"
    assert "exit code 1" in grid("explain", begun["id"], "1")
    wait_for((tmp_path / begun["id"]).exists)
    [pilot] = json.loads(grid("stat", begun["id"], "--json"))["pilots"]
    assert (tmp_path / begun["id"]).read_text().split() == [str(tmp_path), pilot["run_id"]]
    described = grid("stat", begun["id"], "-d")
    assert "hello.sh" in described and "mv before" in described and "60 s" in described
    (tmp_path / "campaign.json").write_text(json.dumps({**fields, "prologue": []}))
    grid("submit", "--jdl", "campaign.json", "--dry-run", code=2)
    (tmp_path / "campaign.json").write_text(json.dumps({**fields, "type": "best-effort"}))
    grid("submit", "--jdl", "campaign.json", code=2)
    grid("submit", "roots.py:root", "--jdl", "campaign.json", code=2)


def test_what_can_not_be_meant_is_told(grid, tmp_path):
    (tmp_path / "values.csv").write_text("number\n4\n4\n")
    grid("submit", "roots.py:root", code=2)
    grid("submit", "roots.py:root", "--values", "nowhere.csv", code=2)
    grid("submit", "roots.py:root", "--values", "values.csv", "--key", "number", code=2)
    grid("submit", "roots.py:root", "--count", "3", "--clusters", "nowhere", code=2)
    grid("fix", "1234", code=2)
    grid("logs", "ffffffff", "0", code=2)


def test_a_grid_of_one_home_has_no_users_and_clusters_have_caps(grid):
    assert "no users" in grid("user")
    grid("token", "alice", code=1)
    grid("user", "alice", "--weight", "2", code=1)
    assert json.loads(grid("cap", "curnagl", "8", "--json")) == {"curnagl": 8}
    assert "curnagl" in grid("cap")
    for wrong in ("0", "many", ""):
        grid("cap", "curnagl", wrong, code=2)
    assert "No cluster" in grid("cap", "curnagl", "none")
