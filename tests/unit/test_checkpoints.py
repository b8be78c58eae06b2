"""Names of checkpoints stay in their folder; outside of a run they are the process's own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm_ray_flow import checkpoint
from slurm_ray_flow.remote.driver import checkpoints


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "r" / "checkpoints"
    monkeypatch.setenv(checkpoints.FOLDER_VARIABLE, str(folder))
    return folder


def test_a_name_is_a_path_below_the_runs_folder(folder):
    assert checkpoint("model.pt") == folder / "model.pt"
    assert checkpoint(Path("fold3") / "model.pt").parent.is_dir()
    assert checkpoint() == folder
    assert folder.is_dir()


@pytest.mark.parametrize("name", ["../model.pt", "/etc/passwd", "a/../../b", ".."])
def test_a_name_that_leads_out_is_refused(folder, name):
    with pytest.raises(ValueError, match="leads out"):
        checkpoint(name)


def test_a_link_that_leads_out_is_refused(folder, tmp_path):
    checkpoint("a")
    (folder / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="link"):
        checkpoint("link/model.pt")


@pytest.mark.parametrize("attempt", ["abc", "abc.2", "abc.17"])
def test_all_tries_of_a_run_share_one_folder(attempt):
    assert checkpoints.folder_of(f"/root/runs/{attempt}") == "/root/runs/abc/checkpoints"


def test_outside_of_a_run_it_goes_with_the_process():
    code = "from slurm_ray_flow import checkpoint; p = checkpoint('a/b'); p.write_text('x'); print(p)"
    environment = {key: value for key, value in os.environ.items() if key != checkpoints.FOLDER_VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    path = Path(done.stdout.strip())
    assert path.parts[-2:] == ("a", "b")
    assert not path.parent.parent.exists()
