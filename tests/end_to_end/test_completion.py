"""What `srf completion` writes, taken by the real shells: somebody types half a verb and presses the tabulator."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from terminal import Terminal

SRF = str(Path(sys.executable).with_name("srf"))
READY = "ready-to-type"
ZSH = "autoload -Uz compinit && compinit -u -D"


def needs(shell):
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"there is no {shell}")


@pytest.fixture
def written(tmp_path):
    """Writes the completion for a shell into a file of the folder."""

    def write(shell, name):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(subprocess.check_output([SRF, "completion", shell], text=True))
        return tmp_path / name

    return write


def completed(shell, *lines):
    """What a shell shows after these lines, half a verb and half an option, each with a tabulator."""
    terminal = Terminal(*shell, PS1="$ ", HOME="/nonexistent")
    try:
        for line in (*lines, f"echo {READY[:5]}''{READY[5:]}"):
            terminal.type(f"{line}\n")
        terminal.until(READY)
        terminal.type("srf dashb\t")
        terminal.until("dashboard")
        terminal.type("\x15srf runs --clus\t")
        terminal.until("--cluster")
    finally:
        terminal.close()


def test_bash_completes(written):
    completed(["bash", "--norc", "-i"], f"source {written('bash', 'completion')}")


@needs("zsh")
def test_zsh_completes_by_a_file_among_its_functions(written):
    folder = written("zsh", "functions/_srf").parent
    completed(["zsh", "-f", "-i"], f"fpath=({folder} $fpath)", ZSH)


@needs("zsh")
def test_zsh_completes_by_a_file_that_is_read(written):
    completed(["zsh", "-f", "-i"], ZSH, f"source {written('zsh', 'completion')}")


@needs("fish")
def test_fish_completes(written):
    asked = f"source {written('fish', 'completion')}; complete -C 'srf dashb'; complete -C 'srf runs --clus'"
    shown = subprocess.check_output(["fish", "--no-config", "-c", asked], text=True)
    assert [line.split()[0] for line in shown.splitlines()] == ["dashboard", "--cluster"]


def test_bash_completes_a_run(written, work):
    handle = work.nothing.submit()
    handle.result(180)
    terminal = Terminal("bash", "--norc", "-i", PS1="$ ", HOME="/nonexistent")
    try:
        terminal.type(f"source {written('bash', 'completion')}; PATH={Path(SRF).parent}:$PATH\n")
        terminal.type(f"echo {READY[:5]}''{READY[5:]}\n")
        terminal.until(READY)
        terminal.type(f"srf logs {handle.run_id[:6]}\t")
        terminal.until(f"srf logs {handle.run_id[:8]}")
    finally:
        terminal.close()


def test_saved_clusters_are_offered(server, srf):
    assert srf("init", "offered", "--host", "box.example.org", "--overwrite").returncode == 0
    assert {"local", "offered"} <= set(srf("__complete", "check", "").stdout.split())
    srf("forget", "offered")
