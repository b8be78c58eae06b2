"""The files of a run, on every kind of cluster: where a function works, and how what it writes comes home."""

import dataclasses
import os
import shlex

import pytest

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.outputs import printable_name
from slurm_ray_flow.core.run import RunRecord
from slurm_ray_flow.core.snapshot import manifest
from slurm_ray_flow.tasks.run_files import bring, files_of
from support import wait_for


@pytest.fixture
def project(tmp_path):
    """A project at home: a script that is executable, data, and a link inside."""
    folder = tmp_path / "project of mine"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "in.csv").write_text("as it was\n")
    (folder / "large.bin").write_bytes(bytes(range(256)) * 4096)
    (folder / "tool.sh").write_text("#!/bin/sh\n")
    (folder / "tool.sh").chmod(0o755)
    (folder / "link.csv").symlink_to("data/in.csv")
    return folder


@pytest.fixture
def sent(cluster, project):
    """The project's snapshot, as a run's spec has it."""
    found = manifest([], project=project, working_directory=project, include=["."])
    made = cluster.send(found, "some")
    return {"snapshot": str(made.folder), "path": ["work/project"], "working_directory": "work/project"}


def record_of(paths, home):
    return RunRecord(
        run_id=paths.run_id, flow_run_id="", cluster="here", kind="", root=str(paths.root), attempt=paths.run_id,
        allocation=paths.run_id, function="f", pid=0, started=None, boot_id=None, created=1.0, home_folder=str(home),
    )  # fmt: skip


def _change_everything():
    import os
    from pathlib import Path

    before = {name: Path(name).read_bytes() for name in ("data/in.csv", "large.bin", "link.csv")}
    executable = os.access("tool.sh", os.X_OK)
    for name in ("data/in.csv", "large.bin", "tool.sh"):
        os.chmod(name, 0o700)
        with open(name, "r+b") as stream:  # in place
            stream.write(b"changed")
    os.remove("link.csv")
    Path("data/new.csv").write_text("new")
    Path("../beside.txt").write_text("new")
    return str(Path.cwd()), {name: content[:9] for name, content in before.items()}, executable


def test_what_a_run_writes_no_other_run_meets(lab, sent):
    seen = [lab.value(lab.start(run, _change_everything, **sent)) for run in ("first", "second")]
    assert [folder for folder, _, _ in seen] == [str(paths.folder / "work" / "project") for paths in lab.runs]
    original = {"data/in.csv": b"as it was", "large.bin": bytes(range(9)), "link.csv": b"as it was"}
    assert [(before, executable) for _, before, executable in seen] == [(original, True)] * 2


def _write_files():
    import os
    from pathlib import Path

    Path("results/deep").mkdir(parents=True)
    for name in ("results/a.csv", "results/deep/b.csv", "results/note.txt"):
        Path(name).write_text(name)
    with open("data/in.csv", "a") as stream:
        stream.write("more\n")
    Path("outside").symlink_to("/etc")
    Path("results/passwd.csv").symlink_to("/etc/passwd")
    os.utime("large.bin")
    os.mkfifo("results/pipe.csv")
    raise ValueError("after all that")


def test_what_it_has_written_comes_home_also_after_a_failure(lab, cluster, sent, tmp_path):
    paths = lab.start("run", _write_files, **sent)
    ended = lab.ended(paths)
    assert ended["cause"] == "user_code"
    record, warned = record_of(paths, tmp_path / "home"), []
    _, files = files_of(record, cluster, warned.append)
    expected = ["data/in.csv", "large.bin", "results/a.csv", "results/deep/b.csv", "results/note.txt"]
    assert sorted(file.path for file in files) == expected
    assert {file.path: file.size for file in files}["results/a.csv"] == 13
    assert ended["files"]["count"] == 5

    brought = bring(record, cluster, ["results/*.csv", "data"], None, False, warned.append)
    assert sorted(brought.paths) == [tmp_path / "home/data/in.csv", tmp_path / "home/results/a.csv"]
    assert (tmp_path / "home/data/in.csv").read_text() == "as it was\nmore\n"
    assert not warned
    everything = bring(record, cluster, ["results/**/*.csv"], tmp_path / "other", False, warned.append)
    assert sorted(everything.paths) == [tmp_path / "other/results/a.csv", tmp_path / "other/results/deep/b.csv"]
    assert not bring(record, cluster, ["outside/passwd", "results/passwd.csv"], None, False, warned.append).paths
    assert len(warned) == 2
    assert all("a.csv" in text for text in warned), "it says what is there"


def test_what_was_changed_at_home_stays(lab, cluster, sent, tmp_path):
    paths = lab.start("run", _write_files, **sent)
    lab.ended(paths)
    record = dataclasses.replace(record_of(paths, tmp_path), created=1e9)
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a.csv").write_text("mine")
    (tmp_path / "results/note.txt").write_text("old")
    os.utime(tmp_path / "results/note.txt", (9e8, 9e8))
    warned = []
    brought = bring(record, cluster, ["results/a.csv", "results/note.txt"], None, False, warned.append)
    assert brought.paths == [tmp_path / "results/note.txt"]
    assert set(brought.left) == {"results/a.csv"}
    assert (tmp_path / "results/a.csv").read_text() == "mine"
    assert "--overwrite" in warned[-1]
    assert not bring(record, cluster, ["results/note.txt"], None, False, warned.append).left, "it is the same"
    bring(record, cluster, ["results/a.csv"], None, True, warned.append)
    assert (tmp_path / "results/a.csv").read_text() == "results/a.csv"


def test_links_at_home_lead_nowhere(lab, cluster, sent, tmp_path):
    paths = lab.start("run", _write_files, **sent)
    lab.ended(paths)
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (elsewhere / "in.csv").write_text("mine")
    (home / "results").symlink_to(elsewhere)
    (home / "data").mkdir()
    (home / "data/in.csv").symlink_to(elsewhere / "in.csv")
    record, warned = record_of(paths, home), []
    brought = bring(record, cluster, ["results", "data"], None, True, warned.append)
    assert not brought.paths
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == {"in.csv": "mine"}
    assert sorted(path.name for path in home.iterdir()) == ["data", "results"]


def _write_odd_names():
    import os

    os.mkdir(b"odd")
    for name in (
        b"new\nline",
        b"\x1b[31mred",
        b"#hash",
        b"-rf",
        b"; rm -rf $HOME",
        b"two  spaces ",
        b"caf\xe9",
        b"..x",
    ):
        with open(b"odd/" + name, "wb") as stream:
            stream.write(name)
    os.mkdir(".git")
    with open(".git/config", "w") as stream:
        stream.write("[alias]")


def test_odd_names_come_home_as_they_are(lab, cluster, sent, tmp_path):
    paths = lab.start("run", _write_odd_names, **sent)
    lab.ended(paths)
    record, warned = record_of(paths, tmp_path / "home"), []
    brought = bring(record, cluster, ["odd", ".git"], None, False, warned.append)
    found = {os.fsencode(path.name): path.read_bytes() for path in brought.paths}
    assert len(found) == 8
    assert all(name == content for name, content in found.items())
    assert set(brought.left) == {".git/config"}
    _, files = files_of(record, cluster, warned.append)
    assert all(printable_name(file.path).isprintable() for file in files)


def test_a_run_that_has_written_nothing_leaves_nothing_but_its_own(lab, kind, sent):
    paths = lab.start("run", _nothing, **sent)
    assert "files" not in lab.ended(paths)
    lab.gone(paths)
    wait_for(lambda: not [path for path in kind.seen(paths.folder / "work").rglob("*") if path.is_file()])


def _nothing():
    return None


def test_a_clean_up_takes_the_files_with_the_run(lab, cluster, kind, sent):
    paths = lab.start("run", _write_large, **sent)
    lab.value(paths)
    lab.gone(paths)
    known = {"ages": {}, "launching": [], "kept": []}
    which = {"root": str(cluster.root_folder), "seconds": 1e9, "known": known, "run": "run"}
    [thing] = cluster.ask("clean_up.find", **which)["things"]
    assert thing["bytes"] > 1 << 20
    assert not cluster.ask("clean_up.remove", **which, places=[thing["name"]])["stayed"]
    assert not kind.seen(paths.folder).exists()


def _write_large():
    import os

    with open("large.out", "wb") as stream:
        stream.write(os.urandom(1 << 20))
    os.makedirs("closed/inner")
    os.chmod("closed", 0o500)


def test_a_disk_that_is_full_is_told(lab, kind, cluster, sent):
    run = "full"
    place = cluster.root_folder / "runs" / run / "work"
    cluster.write(place, b"it is a file")  # what no folder can be made over
    paths = lab.start(run, _nothing, announce=False, **sent)
    ended = lab.ended(paths)
    assert ended["cause"] == "environment"
    assert shlex.quote(str(place)) in ended["message"]


def test_a_folder_that_can_not_be_written_at_home_is_an_error(lab, cluster, sent, tmp_path):
    paths = lab.start("run", _write_files, **sent)
    lab.ended(paths)
    (tmp_path / "file").write_text("")
    with pytest.raises(SyncError, match="can't be written"):
        bring(record_of(paths, tmp_path / "file"), cluster, ["results"], None, False, print)


def _ask_workers(count):
    import importlib
    import os
    import socket
    import time

    import ray

    @ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
    def look(number):
        mine = importlib.import_module("mine")
        time.sleep(1.0)
        with open("data/in.csv") as stream:
            read = stream.read()
        with open(f"by-{number}.txt", "w") as stream:
            stream.write("x")
        return socket.gethostname(), os.getcwd(), os.path.realpath(str(mine.__file__)), read

    found = ray.get([look.remote(number) for number in range(count)])
    with open("data/in.csv", "w") as stream:
        stream.write("changed by the function")
    return found, os.getcwd()


@pytest.mark.ray
def test_rays_workers_work_in_the_folder_of_their_own_call_on_all_nodes(lab, cluster, project, tmp_path):
    (project / "mine.py").write_text("")
    found = manifest([], project=project, working_directory=project, include=["."])
    sent = {"snapshot": str(cluster.send(found, "some").folder), "path": ["work/project"]}
    sent = {**sent, "working_directory": "work/project", "ray": True}
    shape = {**sent, "keep_warm": 120.0, "nodes": min(cluster.facts().nodes, 2)}
    for run in ("first", "second", "third"):
        paths = lab.start(run, _ask_workers, 2 * shape["nodes"], joins="" if run == "first" else "first", **shape)
        looked, folder = lab.value(paths)
        assert folder == str(paths.folder / "work" / "project")
        assert {(where, module) for _, where, module, _ in looked} == {(folder, f"{folder}/mine.py")}
        assert {read for *_, read in looked} == {"as it was\n"}
        assert len({host for host, *_ in looked}) == shape["nodes"] or run != "first"
        _, files = files_of(record_of(paths, tmp_path), cluster, print)
        written = {file.path for file in files}
        assert written == {f"by-{number}.txt" for number in range(len(looked))} | {"data/in.csv"}
