"""Files of runs, through real launches on this machine."""

import json
import os

import pytest

from slurm_ray_flow import Handle
from slurm_ray_flow.blocks import store
from support import wait_for

pytestmark = pytest.mark.server

SCRIPT = """
import sys
from pathlib import Path

from slurm_ray_flow import slurm_ray_flow
import helper

HERE = Path(__file__).parent


@slurm_ray_flow(ray="never", include=["data"], outputs=["results/*.csv", "none.txt"])
def work(number):
    data = Path("data/in.csv")
    seen = data.read_text(), (Path(helper.__file__).parent / "data/in.csv").read_text()
    data.write_text("changed by a run")
    Path("results").mkdir()
    Path(f"results/{number}.csv").write_text(str(number))
    Path("results/same.csv").write_text(str(number))
    Path("left.txt").write_text("left")
    print("wrote", flush=True)
    if number < 0:
        raise ValueError("negative")
    return seen


if __name__ == "__main__":
    if sys.argv[1] == "map":
        print(work.map([1, 2]).results())
    else:
        print(work(int(sys.argv[1])))
"""


@pytest.fixture
def folder(tmp_path):
    """The user's project."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/in.csv").write_text("as it was")
    (tmp_path / "helper.py").write_text("")
    (tmp_path / "requirements.txt").write_text("")
    return tmp_path


def newest():
    return max(store.records(), key=lambda record: record.created).run_id


def test_outputs_come_home_beside_the_script(folder, script, srf):
    (folder / "results").mkdir()
    (folder / "results/same.csv").write_text("of an earlier run")
    os.utime(folder / "results/same.csv", (1e9, 1e9))
    done = script(SCRIPT, "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(("as it was", "as it was"))
    assert (folder / "results/1.csv").read_text() == "1"
    assert (folder / "results/same.csv").read_text() == "1"
    assert (folder / "data/in.csv").read_text() == "as it was"
    assert not (folder / "left.txt").exists()

    run = newest()
    handle = Handle.attach(run)
    assert [file.path for file in handle.files()] == ["left.txt", "data/in.csv", "results/1.csv", "results/same.csv"]
    assert handle.fetch("left.txt") == [folder / "left.txt"]
    (folder / "results/1.csv").write_text("mine")
    with pytest.warns(UserWarning, match=r"1\.csv stays"):
        assert handle.fetch("results/1.csv") == []
    told = json.loads(srf("fetch", run[:8], "results", "--to", str(folder / "to"), "--json").stdout)
    assert sorted(told["files"]) == [str(folder / "to/results/1.csv"), str(folder / "to/results/same.csv")]
    assert srf("fetch", run[:8], "results/1.csv", "--overwrite").returncode == 0
    assert (folder / "results/1.csv").read_text() == "1"
    assert "left.txt" in srf("fetch", run[:8]).stdout
    assert srf("fetch", run[:8], "../x").returncode == 2


def test_outputs_come_home_after_a_failure(folder, script):
    done = script(SCRIPT, "-1")
    assert done.returncode == 1
    assert "ValueError: negative" in done.stderr
    assert (folder / "results/-1.csv").read_text() == "-1"


def test_each_call_of_a_map_has_a_folder_of_its_own(folder, script):
    done = script(SCRIPT, "map")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str([("as it was", "as it was")] * 2)
    [of_map] = (folder / "outputs").iterdir()
    came = {str(path.relative_to(of_map)): path.read_text() for path in of_map.rglob("*.csv")}
    assert came == {
        "0/results/1.csv": "1",
        "0/results/same.csv": "1",
        "1/results/2.csv": "2",
        "1/results/same.csv": "2",
    }


def test_the_runs_page_says_what_is_there(folder, script, api):
    assert script(SCRIPT, "3").returncode == 0
    wanted = {"artifacts": {"flow_run_id": {"any_": [newest()]}}}

    def found():
        answer = api.post("/artifacts/filter", wanted)
        return [each for each in answer if (each["key"] or "").startswith("outputs-")]

    wait_for(found)
    rows = json.loads(found()[0]["data"])
    assert {row["file"]: row["bytes"] for row in rows} == {
        "left.txt": 4, "data/in.csv": 16, "results/3.csv": 1, "results/same.csv": 1,
    }  # fmt: skip
