"""The folder that a call works in."""

from __future__ import annotations

import json
import os
import py_compile
import time
from pathlib import Path
from typing import Any

import pytest

from slurm_ray_flow.remote.shared import working_directory
from slurm_ray_flow.remote.shared.events import RunFiles
from slurm_ray_flow.remote.shared.protocol import OperationError


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    folder = tmp_path / "root/snapshots/p/d"
    (folder / "project/data").mkdir(parents=True)
    (folder / "project/__pycache__").mkdir()
    (folder / "project/mine.py").write_text("VALUE = 1\n")
    (folder / "project/data/in.csv").write_text("as it was")
    (folder / "project/data/large.bin").write_bytes(os.urandom(1 << 20))
    (folder / "project/link").symlink_to("data/in.csv")
    for path in folder.rglob("*.*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
        path.chmod(0o400)
    return folder


def begun(tmp_path: Path, snapshot: Path, name: str = "run") -> tuple[RunFiles, dict[str, Any]]:
    run = RunFiles(str(tmp_path / "root"), name)
    spec = {"format": 1, "snapshot": str(snapshot), "path": ["work/project"], "working_directory": "work/project"}
    Path(run.folder).mkdir(parents=True)
    Path(run.spec).write_text(json.dumps(spec))
    return run, spec


def filled(tmp_path: Path, snapshot: Path, name: str = "run") -> tuple[RunFiles, Path]:
    run, spec = begun(tmp_path, snapshot, name)
    working_directory.make(spec, run.folder)
    working_directory.fill(run, spec, run.folder)
    time.sleep(0.01)  # a file system's clock ticks some hundred times a second
    return run, Path(run.folder, "work/project")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_it_is_a_copy_with_times_that_may_be_written(tmp_path: Path, snapshot: Path) -> None:
    before = contents(snapshot)
    _, work = filled(tmp_path, snapshot)
    assert contents(work.parent) == before
    for path in (path for path in work.rglob("*") if path.is_file() and not path.is_symlink()):
        assert path.stat().st_mtime == 1e9
        assert path.stat().st_nlink == 1
        path.write_text("changed")
    assert (work / "link").is_symlink()
    assert contents(snapshot) == before


def test_what_a_cut_left_is_written_anew_and_what_is_whole_is_left_alone(tmp_path: Path, snapshot: Path) -> None:
    run, spec = begun(tmp_path, snapshot)
    work = Path(run.folder, "work/project")
    work.mkdir(parents=True)
    (work / "mine.py").write_text("VAL")
    (work / "link").symlink_to("data/in.csv")
    working_directory.fill(run, spec, run.folder)
    assert (work / "mine.py").read_text() == "VALUE = 1\n"
    (work / "mine.py").write_text("changed")
    working_directory.fill(run, spec, run.folder)
    assert (work / "mine.py").read_text() == "changed"


def test_what_was_written_is_told_and_the_rest_goes(tmp_path: Path, snapshot: Path) -> None:
    run, work = filled(tmp_path, snapshot)
    assert working_directory.Written(run).event_fields() == {}
    (work / "new/deep").mkdir(parents=True)
    (work / "new/deep/a.txt").write_text("four")
    (work / "data/in.csv").write_text("was as it")  # as long as before
    (work / "mine.py").chmod(0o644)
    (work / "outside").symlink_to("/etc")
    (work.parent / "beside.txt").write_text("not in the working directory")
    told = working_directory.Written(run).event_fields()["files"]
    assert told == {"count": 2, "bytes": 13, "largest": [["data/in.csv", 9], ["new/deep/a.txt", 4]]}
    found = working_directory.written(run.root, run.id)
    assert [name for name, _, _ in found["files"]] == ["data/in.csv", "new/deep/a.txt"]
    assert found["folder"] == str(work)
    working_directory.Written(run).remove_copies()
    left = sorted(str(path.relative_to(work.parent)) for path in work.parent.rglob("*") if not path.is_dir())
    assert left == ["beside.txt", "project/data/in.csv", "project/new/deep/a.txt"]
    assert not (work / "link").is_symlink()
    assert (work / "outside").is_symlink()


def test_no_link_leads_a_removal_elsewhere(tmp_path: Path, snapshot: Path) -> None:
    run, work = filled(tmp_path, snapshot)
    elsewhere = tmp_path / "elsewhere"
    work.rename(elsewhere)
    before = contents(elsewhere)
    work.symlink_to(elsewhere)
    assert not list(working_directory.Written(run).files())
    working_directory.Written(run).remove_copies()
    assert contents(elsewhere) == before


def test_bytecode_serves_the_next_run(tmp_path: Path, snapshot: Path) -> None:
    run, work = filled(tmp_path, snapshot)
    made = Path(str(py_compile.compile(str(work / "mine.py"))))
    working_directory.Written(run).remove_copies()
    assert (snapshot / "project/__pycache__" / made.name).exists()
    _, again = filled(tmp_path, snapshot, "next")
    assert (again / "__pycache__" / made.name).exists()


def test_a_spare_one_becomes_a_runs_own(tmp_path: Path, snapshot: Path) -> None:
    run, work = filled(tmp_path, snapshot)
    assert working_directory.ahead(run, run.folder) == run.folder
    run.record("call_started", pid=1)
    spare = working_directory.ahead(run, run.folder)
    assert spare.startswith(f"{run.folder}/spare/")
    working_directory.fill_spare(run, run.read_spec(), spare)
    following, spec = begun(tmp_path, snapshot, "next")
    working_directory.move(spare, following.folder)
    working_directory.fill(following, spec, following.folder)
    own = Path(following.folder, "work/project")
    assert contents(own) == contents(snapshot / "project")
    assert not Path(spare, "work").exists()
    working_directory.remove_spares(run)
    assert not Path(run.folder, "spare").exists()
    assert own.is_dir()
    assert work.is_dir()


def test_what_stands_in_the_way_is_told_with_its_path(tmp_path: Path, snapshot: Path) -> None:
    run, spec = begun(tmp_path, snapshot)
    Path(run.folder, "work").write_text("a file")
    with pytest.raises(OperationError) as caught:
        working_directory.fill(run, spec, run.folder)
    assert caught.value.cause == "environment"
    assert caught.value.where.startswith(run.folder)
    assert caught.value.advice
