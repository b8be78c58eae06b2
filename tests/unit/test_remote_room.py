"""Quotas, the advice on a build that failed, and the one file an environment may be kept in."""

import os
import tarfile

import pytest

from slurm_ray_flow.remote.agent import probe
from slurm_ray_flow.remote.environment import installation
from slurm_ray_flow.remote.environment.environments import advice
from slurm_ray_flow.remote.shared.protocol import OperationError

QUOTA = """Disk quotas for user frank (uid 2006):
     Filesystem   space   quota   limit   grace   files   quota   limit   grace
/home 1000 4000 5000 0 90 100 120 0
"""


def test_a_quota_counts_in_blocks_and_files():
    assert probe.read_quota(QUOTA) == {"bytes": 4000 * 1024, "files": 30}
    assert probe.read_quota("Disk quotas for user frank (uid 2006): none") == {}
    assert probe.read_quota("/home 9000* 4000 5000 1795000000 90 0 0 0")["bytes"] == 0


@pytest.mark.parametrize(
    ("message", "hint"),
    [
        ("error: Request failed\n  Caused by: dns error", "upload"),
        ("Failed to fetch: `https://host.invalid/simple/six/`", "upload"),
        ("the disk of /a is full: uv: No space left on device", "packed"),
        ("six==99 has no solution", "change its version"),
    ],
)
def test_the_advice_fits_the_failure(message, hint):
    assert hint in advice(message, {})


@pytest.fixture
def environment(tmp_path):
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to("/usr/bin/env")
    (folder / "bin" / "run").write_text("#!/bin/sh\n")
    (folder / "bin" / "run").chmod(0o755)
    return folder


def test_packed_and_unpacked_it_is_the_same_and_private(environment, tmp_path):
    archive = tmp_path / "it.tar.gz"
    installation.pack(environment, archive)
    prefix = installation.unpacked(str(archive), str(tmp_path))
    assert os.readlink(os.path.join(prefix, "bin", "python")) == "/usr/bin/env"
    assert os.stat(os.path.join(prefix, "bin", "run")).st_mode & 0o777 == 0o700
    assert os.stat(os.path.dirname(prefix)).st_mode & 0o777 == 0o700
    installation.remove(prefix)
    installation.remove(prefix)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment", "it.tar.gz"]


@pytest.mark.parametrize("damage", ["cut", "escape", "empty"])
def test_a_damaged_archive_leaves_nothing(environment, tmp_path, damage):
    archive = tmp_path / "it.tar.gz"
    if damage == "cut":
        installation.pack(environment, archive)
        archive.write_bytes(archive.read_bytes()[:60])
    else:
        with tarfile.open(archive, "w:gz") as tar:
            if damage == "escape":
                tar.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(OperationError, match="can't be unpacked"):
        installation.unpacked(str(archive), str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment", "it.tar.gz"]


def test_only_what_was_unpacked_is_removed(tmp_path):
    (tmp_path / "environment").mkdir()
    installation.remove(str(tmp_path / "environment"))
    assert (tmp_path / "environment").exists()
