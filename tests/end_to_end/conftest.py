"""The user's project and scripts that the end-to-end tests launch."""

import os
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent / "project"


@pytest.fixture
def work(server, monkeypatch):
    """The user's module, imported as a user's script in that folder would."""
    monkeypatch.syspath_prepend(str(PROJECT))
    monkeypatch.chdir(PROJECT)
    import work

    yield work


@pytest.fixture
def script(server, tmp_path):
    """Runs text as a user's script, in a process of its own; gives its completed process."""
    import subprocess

    def run(text, *arguments, timeout=120, wait=True):
        file = tmp_path / "script.py"
        file.write_text(text)
        process = subprocess.Popen(
            [sys.executable, str(file), *map(str, arguments)],
            cwd=tmp_path,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not wait:
            return process
        stdout, stderr = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run
