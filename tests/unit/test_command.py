"""A shell command as an item: its text, its folder, its files, its end."""

import os
import subprocess
import sys

import pytest

from slurm_ray_flow.core.errors import OptionError
from slurm_ray_flow.interface.command import Command
from slurm_ray_flow.remote.driver import command
from slurm_ray_flow.remote.driver.command import CommandFailed, filled, run
from support import wait_for


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A project with a program; items' folders go beside the file that this process writes to, or to `tmp_path`."""
    project = tmp_path / "project"
    project.mkdir()
    program = project / "simulate"
    program.write_text('#!/bin/sh\necho "$@"\nprintf "%s" "$2" > out.txt\n')
    program.chmod(0o755)
    monkeypatch.chdir(project)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return project


def test_fields_are_words_of_the_shell():
    fields = {"name": "a b; $(touch x) 'q'", "rate": 0.12345, "text": "0.5", "n": 7}
    text = filled("run {name} {rate:.2f} {text:.2f} {n:03d} {{x}} ${{HOME}}", fields)
    assert text == "run 'a b; $(touch x) '\"'\"'q'\"'\"'' 0.12 0.50 007 {x} ${HOME}"
    assert filled("out.{n}.txt", fields, quoted=False) == "out.7.txt"


@pytest.mark.parametrize(
    "template",
    ["", "run {a b}", "run {a.b}", "run {0}", "run {", "run {class}", "run '{a}'", 'run "x {a}"', "awk {print}x {a"],
)
def test_a_command_that_can_not_be_meant_is_refused(template):
    with pytest.raises(OptionError):
        Command(template)


def test_quotes_around_other_words_are_no_matter():
    Command("run \"it's\" 'x \"' \\' {a} 'b'")
    with pytest.raises(OptionError, match="relative"):
        Command("run", outputs=["../x"])
    with pytest.raises(OptionError, match="list"):
        Command("run", outputs="out.txt")


def test_it_runs_in_a_folder_of_its_own_with_the_project_s_files(here):
    result = run("./simulate --seed {seed}; ls; echo own > new.txt", ["*.txt"], {"seed": "7 8"})
    assert (result.exit_code, result.outputs) == (0, {"new.txt": b"own\n", "out.txt": b"7 8"})
    assert result.seconds > 0
    assert os.listdir(here) == ["simulate"], "nothing is written beside the project's files"


def test_a_failure_has_the_code_and_the_end_of_what_was_printed(here):
    text = f"""
import sys; sys.path[:] = {sys.path!r}
from slurm_ray_flow.remote.driver.command import run
for command in ("echo one; exit 3", "kill -SEGV $$", "nowhere-to-be-found"):
    try:
        run(command, [], {{}})
    except Exception as error:
        print(error.exit_code, file=sys.stderr); print(error, file=sys.stderr)
"""
    with open("log", "wb") as log:
        said = subprocess.run([sys.executable, "-c", text], check=True, stdout=log, stderr=subprocess.PIPE, text=True)
    assert said.stderr.startswith("3\n") and "exit code 3: echo one; exit 3" in said.stderr
    assert "printed last:\none" in said.stderr
    assert "-11\n" in said.stderr and "signal SIGSEGV" in said.stderr
    assert "127\n" in said.stderr


def test_an_output_that_is_missing_or_too_large_is_told(monkeypatch):
    with pytest.raises(CommandFailed, match=r"not written 'out\.csv'"):
        run("true", ["out.csv"], {})
    monkeypatch.setattr(command, "LARGEST_OUTPUT", 10)
    with pytest.raises(CommandFailed, match="11 bytes"):
        run("printf 12345678901 > out", ["out"], {})


def test_what_it_leaves_behind_is_ended(tmp_path):
    run("sleep 1000 & echo $! > {path}", [], {"path": str(tmp_path / "pid")})
    wait_for(lambda: not lives(tmp_path / "pid"))


def test_it_ends_with_its_worker(tmp_path):
    text = f"""
import sys; sys.path[:] = {sys.path!r}
from slurm_ray_flow.remote.driver.command import run
run("sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/pid; wait", [], {{}})
"""
    worker = subprocess.Popen([sys.executable, "-c", text])
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    assert lives(tmp_path / "child") and lives(tmp_path / "pid")
    worker.kill()
    worker.wait()
    wait_for(lambda: not lives(tmp_path / "pid") and not lives(tmp_path / "child"))


def lives(file):
    """Whether a process lives that has not ended, and been left by its parent."""
    try:
        with open(f"/proc/{int(file.read_text())}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False
