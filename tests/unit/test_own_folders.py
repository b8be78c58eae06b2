"""In a root folder that others can write, no folder is used that somebody else has put there."""

import json
import os
import stat
import time

import pytest

from slurm_ray_flow.blocks.machine import FOLDERS
from slurm_ray_flow.remote.scheduler import commands
from slurm_ray_flow.remote.shared import files
from slurm_ray_flow.remote.shared.protocol import OperationError

STRANGER = 12001
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def planted(path, target=None):
    path.symlink_to(target) if target else path.mkdir()
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    return path


def refused(make, *arguments):
    with pytest.raises(OperationError, match="another user"):
        make(*arguments)
    return True


@needs_root
@pytest.mark.parametrize("name", FOLDERS)
def test_every_folder_of_ours_is_looked_at_before_a_launch(root, name):
    planted(root / name)
    assert refused(files.folders, str(root), FOLDERS)


@needs_root
def test_an_answer_that_a_stranger_wrote_is_not_believed(root):
    answer = {"text": "planted", "error": "", "began": time.time(), "time": time.time()}
    (planted(root / "slurm") / "queue.json").write_text(json.dumps(answer))
    assert refused(commands.query, str(root), "queue", ["echo", "asked"], 60.0)


@needs_root
def test_the_name_of_the_root_itself_may_be_a_strangers_link(root, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    assert refused(files.folders, str(planted(root / "wheels", mine)), [""])


@needs_root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_strangers_folder_is_no_way_to_one_of_ours(root, tmp_path, kind):
    target = None
    if kind == "link":
        target = tmp_path / "lure"
        target.mkdir()
    planted(root / "cache", target)
    (root / "cache" / "sites").mkdir()
    assert refused(files.private_folder, str(root / "cache" / "sites"))
    assert refused(files.write_whole, str(root / "cache" / "sites" / "file"), b"")


@needs_root
def test_what_is_above_the_root_may_be_anybodys(tmp_path):
    groups = tmp_path / "group"
    groups.mkdir()
    os.chown(groups, STRANGER, STRANGER)
    (tmp_path / "link").symlink_to(groups)
    files.folders(str(tmp_path / "link" / "root"), FOLDERS)
    assert sorted(path.name for path in (groups / "root").iterdir()) == sorted(FOLDERS)


def test_a_folder_of_ours_that_was_open_is_closed(root):
    (root / "cache").mkdir()
    (root / "cache").chmod(0o777)
    files.folders(str(root), FOLDERS)
    assert {stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()} == {0o700}
