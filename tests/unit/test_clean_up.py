"""What goes after 30 days, on real folders whose times are set back."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from slurm_ray_flow.blocks import programs, store
from slurm_ray_flow.blocks.clean_up import CleanUpRoot
from slurm_ray_flow.blocks.clean_up import clean_up as clean_up_place
from slurm_ray_flow.blocks.processes import this_process
from slurm_ray_flow.blocks.server.supervisor import clean_up
from slurm_ray_flow.core.clean_up import DAY, KEPT_DAYS
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.remote.agent import loader
from slurm_ray_flow.remote.environment import installation
from slurm_ray_flow.remote.shared import processes, tree
from slurm_ray_flow.remote.upkeep.stale_files import StaleFiles, expired, node_folders

KEPT_SECONDS = KEPT_DAYS * DAY

NOW = 1e9
OLD, YOUNG = NOW - KEPT_SECONDS - 1, NOW - KEPT_SECONDS + 1


@pytest.mark.parametrize(
    ("used", "alive", "goes"),
    [(OLD, False, True), (YOUNG, False, False), (OLD, True, False), (NOW, None, True)],
    ids=["old", "young", "old and in use", "of no use"],
)
def test_what_is_old_and_not_in_use_goes(used: float, alive: bool | None, goes: bool) -> None:
    left = StaleFiles("run", ("x",), used, alive)
    assert expired([left], NOW, KEPT_SECONDS) == ([left] if goes else [])


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRF_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def age(*paths: Path) -> None:
    """As if all of this had been left alone for long."""
    long_ago = time.time() - 2 * KEPT_SECONDS
    for path in paths:
        for inner in [*path.rglob("*"), path]:
            os.utime(inner, (long_ago, long_ago))


def run_of(root: Path, run_id: str, snapshot: Path, **changes: object) -> list[Path]:
    """A run's record and folder; its launching process is this one, unless `changes` say another."""
    this = this_process()
    record = RunRecord(
        run_id, run_id, "local", "local-machine", str(root), run_id, run_id, "m:f", this.pid, this.started, this.boot_id
    )
    folder = root / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"path": [str(snapshot / "src")]}))
    if changes.get("pid"):
        (folder / "events.jsonl").write_text('{"event": "released"}\n')
    store.save_record(dataclasses.replace(record, **changes))  # type: ignore[arg-type]
    return [folder, store.record_path(run_id)]


def snapshot_of(root: Path, digest: str) -> Path:
    """As a transfer leaves it: nothing in it can be written."""
    folder = root / "snapshots" / "project" / digest
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "module.py").write_text("")
    (folder / "src" / "module.py").chmod(0o400)
    (folder.parent / f"{digest}.list").write_text("")
    age(folder.parent)
    for inner in (folder / "src", folder):
        inner.chmod(0o500)
    return folder


def test_old_runs_and_their_snapshots_go_unless_something_lives(root: Path) -> None:
    used, unused = snapshot_of(root, "aa"), snapshot_of(root, "bb")
    living = run_of(root, "living", used)
    ended = run_of(root, "ended", unused, pid=1, started=0)
    young = run_of(root, "young", unused, pid=1, started=0)
    age(*living, *ended)
    list(clean_up(root))
    assert [path.exists() for path in (*living, *ended, *young)] == [True, True, False, False, True, True]
    assert used.exists() and not unused.exists()
    assert sorted(path.name for path in used.parent.iterdir()) == ["aa", "aa.list"]


def kept_value_of(run_id: str) -> Path:
    folder = store.result_folder(run_id)
    folder.mkdir(parents=True)
    (folder / "value").touch()
    return folder


def test_what_prefect_keeps_of_a_value_goes_with_its_run(root: Path) -> None:
    living, ended = kept_value_of("living"), kept_value_of("ended")
    age(*run_of(root, "living", root), *run_of(root, "ended", root, pid=1, started=0), living, ended)
    list(clean_up(root))
    assert living.exists() and not ended.exists()


def test_so_it_does_where_the_run_was_elsewhere(root: Path) -> None:
    kept = kept_value_of("far")
    folder, record = run_of(root, "far", root, pid=1, started=0)
    folder.rename(root / "elsewhere")
    store.save_record(dataclasses.replace(store.find_record("far"), kind="ssh-server", cluster="desi", root="/there"))
    age(record)
    answers = {"find": {"things": [], "runs": [], "findings": []}, "remove": {"stayed": {}}, "prune": 0}
    place = CleanUpRoot("desi", "ssh-server", "/there", lambda name, **_: answers[name.partition(".")[2]])
    clean_up_place(place, KEPT_SECONDS)
    assert not kept.exists() and not record.exists()


def test_a_run_stays_whose_value_a_younger_one_was_given(root: Path) -> None:
    snapshot = root / "snapshots" / "project" / "aa"
    first = run_of(root, "first", snapshot, pid=1, started=0)
    run_of(root, "second", snapshot, pid=1, started=0, attempt="first", allocation="first")
    age(*first)
    list(clean_up(root))
    assert all(path.exists() for path in first)


def test_a_young_listing_keeps_its_snapshot(root: Path) -> None:
    folder = snapshot_of(root, "cc")
    os.utime(folder.parent / "cc.list")  # as a launch does that uses it again
    list(clean_up(root))
    assert folder.exists()


def test_arguments_go_when_nobody_has_read_them_for_long(root: Path) -> None:
    read, unread = store.put([1], "one"), store.put([2], "two")
    for stored in (read, unread):
        age(store.object_path(stored.digest))
    assert store.get(read.digest) == [1]
    list(clean_up(root))
    assert store.object_path(read.digest).exists()
    assert not store.object_path(unread.digest).exists()


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return tmp_path / "tmp"


@pytest.mark.parametrize("prefix", ["srf-", installation.PREFIX], ids=["Ray's", "an unpacked environment's"])
def test_what_a_killed_head_had_on_its_node_goes_at_once(root: Path, node: Path, prefix: str) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    this = processes.this()
    living, dead, foreign = (node / f"{prefix}{name}" for name in ("living", "dead", "foreign"))
    for folder in (living, dead, foreign):
        folder.mkdir()
    (living / "owner").write_text(json.dumps(this))
    (dead / "owner").write_text(json.dumps({**this, "pid": gone.pid}))
    [kind] = [left.kind for left in node_folders() if left.base == str(node) and left.paths == (dead.name,)]
    assert kind == ("Ray folder" if prefix == "srf-" else "unpacked environment")
    list(clean_up(root))
    assert (living.exists(), dead.exists(), foreign.exists()) == (True, False, True)


def test_a_removal_on_the_node_that_was_interrupted_is_done_to_its_end(root: Path, node: Path) -> None:
    inner = Path(installation.unpacked(str(_packed(node.parent)), str(node)))
    aside = node / f".{inner.parent.name}"
    inner.parent.rename(aside)  # as `packing.remove` does first
    kept = [node / name for name in (".srf-mine", ".srf", ".others.12345678.expired")]
    away = node / tree.set_aside(str(node), _made(node / "srf-12345678").name)
    for folder in kept:
        folder.mkdir()
    list(clean_up(root))
    assert sorted(node.iterdir()) == sorted(kept)
    assert not away.exists()


def _made(folder: Path) -> Path:
    (folder / "r").mkdir(parents=True)
    return folder


def _packed(folder: Path) -> Path:
    (folder / "environment" / "bin").mkdir(parents=True)
    (folder / "environment" / "bin" / "python").touch()
    installation.pack(folder / "environment", folder / installation.ARCHIVE)
    return folder / installation.ARCHIVE


def test_programs_that_a_log_in_uses_do_not_expire(root: Path) -> None:
    there = programs.install(root)
    age(there)
    loader.prepared(str(root), there.name)
    list(clean_up(root))
    assert there.exists()
