"""The user's project and scripts that the end-to-end tests launch."""

import os
import sys
import tempfile
from pathlib import Path

import pytest

import prepared

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
    """Runs text as a user's script, in a process of its own; gives its completed process.

    With `imports=True` it does its own imports, where these are what the test looks at.
    """
    import subprocess

    def run(text, *arguments, timeout=180, wait=True, imports=False):
        file = tmp_path / "script.py"
        file.write_text(text)
        command = [sys.executable, str(file), *map(str, arguments)]
        pipes = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        start = subprocess.Popen if imports else prepared.start
        process = start(command, **pipes)
        if not wait:
            return process
        stdout, stderr = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    return run


@pytest.fixture
def api(server):
    """The server's API, without Prefect's client."""
    from slurm_ray_flow.blocks.server.api import Api
    from slurm_ray_flow.blocks.server.files import auth_string, server_files

    return Api(server.url, auth_string(server_files()))


@pytest.fixture(scope="session")
def taken_runner_storage():
    """A folder for temporary files where Prefect's runner can make none, as in /tmp after another user's runner."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "runner_storage").touch()
        yield Path(folder)


@pytest.fixture
def served(server, taken_runner_storage):
    """Starts `served.py` as a user would, in a process of its own; gives the process."""
    import subprocess

    started = []
    env = {**os.environ, "TMPDIR": str(taken_runner_storage)}

    def start(*arguments):
        command = [sys.executable, str(PROJECT / "served.py"), *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(prepared.start(command, cwd=PROJECT, env=env, **pipes))
        return started[-1]

    yield start
    for process in started:
        with process:  # closes the pipes, and reads nothing: what it has started may hold them for long
            process.kill()
