"""Which of a run's files are meant, and what a name from a cluster may do here."""

import os
from pathlib import Path, PurePosixPath

import pytest

from slurm_ray_flow.blocks.output_files import bring_home
from slurm_ray_flow.core.errors import ConnectionFailed, OptionError
from slurm_ray_flow.core.options import Options
from slurm_ray_flow.core.outputs import WrittenFile, checked_pattern, matching_files, may_come_home, printable_name
from slurm_ray_flow.core.project import folder_at_home

FILES = ["model.pt", "a.csv", "results/a.csv", "results/deep/b.csv", "results/[1].csv", "log/x.txt", "#note", "!odd"]


def named(*patterns):
    return {file.path for file in matching_files([WrittenFile(name, 1, 1) for name in FILES], patterns)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("model.pt", {"model.pt"}),
        ("*.csv", {"a.csv"}),
        ("./results/*.csv", {"results/a.csv", "results/[1].csv"}),
        ("results/**/*.csv", {"results/a.csv", "results/deep/b.csv", "results/[1].csv"}),
        ("**/*.csv", {"a.csv", "results/a.csv", "results/deep/b.csv", "results/[1].csv"}),
        ("results", {"results/a.csv", "results/deep/b.csv", "results/[1].csv"}),
        ("results/", {"results/a.csv", "results/deep/b.csv", "results/[1].csv"}),
        ("results/[1].csv", {"results/[1].csv"}),
        ("model.p?", {"model.pt"}),
        ("#note", {"#note"}),
        ("!odd", {"!odd"}),
        (".", set(FILES)),
        ("**", set(FILES)),
        ("resu", set()),
        ("none*", set()),
    ],
)
def test_what_a_pattern_names(pattern, expected):
    assert named(pattern) == expected


def test_several_patterns_name_what_each_of_them_does():
    assert named("model.pt", "log") == {"model.pt", "log/x.txt"}


@pytest.mark.parametrize("pattern", ["", "  ", "/etc/passwd", "../x", "a/../../x", "a/..", "~/x", "~", "a\0b", None, 3])
def test_a_pattern_that_leads_out_is_refused_where_it_is_written(pattern):
    with pytest.raises(OptionError):
        Options().stating(outputs=[pattern])


def test_outputs_are_a_list():
    with pytest.raises(OptionError, match="list"):
        Options().stating(outputs="model.pt")
    assert Options().stating(outputs=["./a//b/", "model.pt"]).outputs == ("a/b", "model.pt")
    assert checked_pattern("a.b") == "a.b"


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a//b",
        "",
        ".",
        "a/./b",
        "a\0b",
        ".git/config",
        "sub/.GIT/hooks/x",
        "..",
        "a/",
    ],
)
def test_a_name_that_leads_elsewhere_does_not_come_home(name, tmp_path):
    assert not may_come_home(name)
    brought = bring_home(_Hostile(), PurePosixPath("/"), [WrittenFile(name, 1, 1)], tmp_path / "home", 0.0)
    assert not brought.paths
    assert set(brought.left) == {name}
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.parametrize(
    "name", ["...", "..x", ".gitignore", "a b", "new\nline", "\x1b[2J", "caf\udce9", "-rf", "x" * 200]
)
def test_other_names_come_and_are_shown_in_one_harmless_line(name):
    assert may_come_home(name)
    assert printable_name(name).isprintable()


class _Hostile:
    """Sends more than it was asked for, and links."""

    def bring(self, folder, names, target):
        (target / "main.py").write_text("not asked for")
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if name.endswith("link"):
                (target / name).symlink_to("/etc/passwd")
            else:
                (target / name).write_text("new")


def bring(home, *names, since=0.0):
    files = [WrittenFile(name, 3, 1) for name in names]
    return bring_home(_Hostile(), PurePosixPath("/there"), files, home, since)


def test_only_what_was_asked_for_gets_a_place(tmp_path):
    (tmp_path / "main.py").write_text("mine")
    brought = bring(tmp_path, "deep/a.txt", "b.link")
    assert brought.paths == [tmp_path / "deep/a.txt"]
    assert set(brought.left) == {"b.link"}
    assert (tmp_path / "main.py").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "main.py"]


def test_what_is_in_the_way_stays(tmp_path):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (home / "folder.txt").mkdir(parents=True)
    (home / "file").write_text("mine")
    (home / "link").symlink_to(elsewhere)
    (home / "dangling.txt").symlink_to(elsewhere / "none")
    brought = bring(home, "folder.txt", "file/a.txt", "link/a.txt", "dangling.txt", since=1e12)
    assert not brought.paths
    assert len(brought.left) == 4
    assert not list(elsewhere.iterdir())
    assert (home / "file").read_text() == "mine"


def test_a_file_that_was_changed_since_the_launch_stays(tmp_path):
    for name, changed in (("old.txt", 100), ("new.txt", 300)):
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (changed, changed))
    brought = bring(tmp_path, "old.txt", "new.txt", since=200.0)
    assert brought.paths == [tmp_path / "old.txt"]
    assert (tmp_path / "new.txt").read_text() == "mine"
    assert not bring(tmp_path, "new.txt", since=float("inf")).left


def test_what_came_before_a_failure_is_in_its_place(tmp_path):
    class Cut(_Hostile):
        def bring(self, folder, names, target):
            super().bring(folder, names[:1], target)
            raise ConnectionFailed("cut")

    files = [WrittenFile("a", 3, 1), WrittenFile("b", 3, 1)]
    with pytest.raises(ConnectionFailed):
        bring_home(Cut(), PurePosixPath("/"), files, tmp_path, 0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_where_outputs_go(tmp_path):
    project, inner = tmp_path / "project", tmp_path / "project" / "inner"
    inner.mkdir(parents=True)
    assert folder_at_home(project, inner) == inner
    assert folder_at_home(project, project) == project
    assert folder_at_home(project, tmp_path) == project
    assert folder_at_home(inner, Path("/")) == inner
