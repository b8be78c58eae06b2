"""What killed heads leave on a node goes when the next one comes; what may still be needed stays."""

import json
import subprocess
import sys

import pytest

from slurm_ray_flow.remote.shared.leftovers import OWNER, note_owner, remove_leftovers


def left_by_a_dead_process(folder):
    folder.mkdir()
    (folder / "logs").mkdir()
    (folder / "logs" / "one").touch()
    code = "import sys; from slurm_ray_flow.remote.shared.leftovers import note_owner; note_owner(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)


def test_what_a_dead_process_left_goes(tmp_path):
    left_by_a_dead_process(tmp_path / "srf-dead")
    left_by_a_dead_process(tmp_path / "other-dead")
    (tmp_path / "srf-mine").mkdir()
    note_owner(str(tmp_path / "srf-mine"))
    (tmp_path / "srf-new").mkdir()
    (tmp_path / "srf-file").touch()
    (tmp_path / "srf-link").symlink_to(tmp_path / "other-dead")
    remove_leftovers(str(tmp_path), "srf-")
    assert {path.name for path in tmp_path.iterdir()} == {"other-dead", "srf-mine", "srf-new", "srf-file", "srf-link"}


@pytest.mark.parametrize("change", [{"boot_id": "x"}, {"namespace": "pid:[1]"}, {"namespace": ""}, {"started": None}])
def test_what_can_not_be_judged_from_here_stays(tmp_path, change):
    folder = tmp_path / "srf-dead"
    left_by_a_dead_process(folder)
    noted = json.loads((folder / OWNER).read_text())
    (folder / OWNER).write_text(json.dumps({**noted, **change}))
    remove_leftovers(str(tmp_path), "srf-")
    assert folder.exists()
