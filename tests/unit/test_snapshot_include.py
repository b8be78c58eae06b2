"""What `include` sends: named files, folders, patterns, .gitignore."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.snapshot import Manifest, manifest


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


def included(project: Path, *include: str) -> Manifest:
    return manifest([], project=project, working_directory=project, include=include)


def names(found: Manifest) -> list[str]:
    return [entry.place.removeprefix("project/") for entry in found.entries]


@pytest.mark.parametrize(
    ("include", "sent"),
    [
        ("data/a.csv", ["data/a.csv"]),
        ("./data//a.csv", ["data/a.csv"]),
        ("data", ["data/a.csv", "data/b.txt", "data/raw/c.csv"]),
        ("data/*.csv", ["data/a.csv"]),
        ("data/**/*.csv", ["data/a.csv", "data/raw/c.csv"]),
        ("**/*.csv", ["data/a.csv", "data/raw/c.csv", "top.csv"]),
        ("*.csv", ["top.csv"]),
        ("data/[ab].*", ["data/a.csv", "data/b.txt"]),
        ("data/r*", ["data/raw/c.csv"]),
    ],
)
def test_files_folders_and_patterns(project: Path, include: str, sent: list[str]) -> None:
    write(project, "data/a.csv", "data/b.txt", "data/raw/c.csv", "top.csv")
    assert names(included(project, include)) == sent
    if "*" not in include:
        assert names(included(project, str(project / include))) == sent


def test_a_file_whose_name_looks_like_a_pattern_can_be_named(project: Path) -> None:
    write(project, "a[1].csv", "a1.csv")
    assert names(included(project, "a[1].csv")) == ["a[1].csv"]


def test_nested_gitignore_files_and_negations_count_as_in_git(project: Path) -> None:
    write(
        project,
        "a.log",
        "keep.log",
        "build/x.txt",
        "sub/a.log",
        "sub/b.log",
        "sub/build/y.txt",
        "sub/top.txt",
        "top.txt",
    )
    (project / ".gitignore").write_text("*.log\n!keep.log\nbuild/\n/top.txt\n")
    (project / "sub" / ".gitignore").write_text("!b.log\n")
    assert names(included(project, ".")) == [".gitignore", "keep.log", "sub/.gitignore", "sub/b.log", "sub/top.txt"]


def test_a_file_can_be_asked_for_again_where_all_that_lies_in_a_folder_is_left_out(project: Path) -> None:
    write(project, "deep/a.py", "deep/keep.csv", "deep/er/b.py", "shut/a.py", "shut/keep.csv")
    (project / ".gitignore").write_text("deep/**\nshut/\n!keep.csv\n")
    assert names(included(project, ".")) == [".gitignore", "deep/keep.csv"]


def test_the_rules_of_the_repository_above_the_project_count(tmp_path: Path) -> None:
    write(tmp_path, "project/a.py", "project/a.log", ".git/config")
    (tmp_path / ".gitignore").write_text("*.log\n")
    assert names(included(tmp_path / "project", ".")) == ["a.py"]


def test_what_is_named_exactly_is_sent_whatever_gitignore_says(project: Path) -> None:
    write(project, "data/a.csv", "data/b.csv", "data/tmp/c.csv")
    (project / ".gitignore").write_text("data/\n")
    (project / "data" / ".gitignore").write_text("tmp/\n")
    assert names(included(project, "data/a.csv")) == ["data/a.csv"]
    assert names(included(project, "data")) == ["data/.gitignore", "data/a.csv", "data/b.csv"]
    with pytest.raises(SyncError, match="matches nothing"):
        included(project, "data/*.csv")


def test_repositories_environments_and_caches_are_left_out(project: Path) -> None:
    write(
        project,
        "a.py",
        "a.pyc",
        ".git/HEAD",
        "env/pyvenv.cfg",
        "env/lib/x.py",
        "conda/conda-meta/history",
        "conda/y.py",
    )
    for cache in ("__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules", ".ipynb_checkpoints"):
        write(project, f"sub/{cache}/x.py")
    (project / ".venv").symlink_to(project / "env")
    assert names(included(project, ".")) == ["a.py"]


def test_something_that_matches_nothing_is_an_error_with_a_hint(project: Path) -> None:
    write(project, "data/train.csv")
    with pytest.raises(SyncError, match="matches nothing") as caught:
        included(project, "data/trian.csv")
    assert "'train.csv'" in caught.value.advice
    with pytest.raises(SyncError, match="matches nothing") as caught:
        included(project, "dat/train.csv")
    assert "'data'" in caught.value.advice


@pytest.mark.parametrize("include", ["../other/x.csv", "../other/*.csv", "{outside}/*.csv"])
def test_what_lies_outside_must_be_named_exactly(project: Path, include: str) -> None:
    write(project.parent, "other/x.csv")
    with pytest.raises(SyncError, match="outside of the project"):
        included(project, include.format(outside=project.parent / "other"))


def test_files_and_folders_outside_go_outside(project: Path) -> None:
    write(project.parent, "other/x.csv", "other/deep/y.csv", "other/deep/z.csv")
    outside = project.parent / "other"
    found = included(project, str(outside / "x.csv"), str(outside / "deep"))
    assert names(found) == ["outside/0/deep/y.csv", "outside/0/deep/z.csv", "outside/0/x.csv"]
    assert found.roots == (("project", str(project)), ("outside/0", str(outside)))


@pytest.mark.parametrize("absolute", [False, True])
def test_a_link_inside_the_project_stays_a_relative_link_and_its_target_is_sent(project: Path, absolute: bool) -> None:
    write(project, "data/real.csv", "folder/in/x.txt")
    (project / "links").mkdir()
    base = project if absolute else Path("..")
    (project / "links" / "file").symlink_to(base / "data" / "real.csv")
    (project / "links" / "folder").symlink_to(base / "folder")
    found = included(project, "links")
    assert {entry.place: entry.link for entry in found.entries} == {
        "project/links/file": "../data/real.csv",
        "project/links/folder": "../folder",
        "project/data/real.csv": None,
        "project/folder/in/x.txt": None,
    }


def test_what_is_reached_through_a_link_inside_is_sent_once_at_its_real_place(project: Path) -> None:
    write(project, "real/x.txt")
    (project / "alias").symlink_to("real")
    (project / "real" / "loop").symlink_to("..")
    found = included(project, "alias/x.txt", "alias")
    assert {entry.place: entry.link for entry in found.entries} == {
        "project/alias": "real",
        "project/real/x.txt": None,
        "project/real/loop": "..",
    }


def test_a_link_to_a_file_outside_is_sent_as_that_file(project: Path) -> None:
    write(project.parent, "shared/big.csv")
    (project / "big.csv").symlink_to(project.parent / "shared" / "big.csv")
    (entry,) = included(project, ".").entries
    assert (entry.place, entry.link, entry.size) == ("project/big.csv", None, len("shared/big.csv"))


@pytest.mark.parametrize("include", [".", "data", "*"])
def test_a_link_to_a_folder_outside_is_an_error_that_names_it(project: Path, include: str) -> None:
    write(project.parent, "shared/big.csv")
    (project / "data").symlink_to(project.parent / "shared")
    with pytest.raises(SyncError, match="data is a link to a folder outside") as caught:
        included(project, include)
    assert "absolute path" in caught.value.advice
    (project / ".gitignore").write_text("/data\n")
    assert names(included(project, ".")) == [".gitignore"]


@pytest.mark.parametrize("target", ["nowhere", "dangling"])
def test_a_link_to_nothing_is_an_error_that_names_it(project: Path, target: str) -> None:
    (project / "dangling").symlink_to(target)
    with pytest.raises(SyncError, match="dangling is a link to") as caught:
        included(project, ".")
    assert caught.value.where == str(project / "dangling")


def test_a_pipe_is_left_out_of_a_folder_with_a_word_and_an_error_when_named(project: Path) -> None:
    os.mkfifo(project / "pipe")
    write(project, "a.py")
    found = included(project, ".")
    assert names(found) == ["a.py"]
    assert "pipe is left out" in found.findings[0]
    with pytest.raises(SyncError, match="a named pipe"):
        included(project, "pipe")
