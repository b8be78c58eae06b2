"""OpenSSH's client, with answers; and a host that functions are launched on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent / "project"

ASKED = """#!/bin/sh
case "$1" in *assword*) echo "$PASSWORD";; *code*) echo "$CODE";; *) echo "?";; esac
"""


@pytest.fixture
def ssh(hosts_lab, tmp_path):
    """Run a command by OpenSSH, which gets its answers from a program."""
    asked = tmp_path / "askpass"
    asked.write_text(ASKED)
    asked.chmod(0o700)

    def run(where, *command, password="", code="", options=(), config=hosts_lab.ssh_config, timeout=30):
        answers = {"PASSWORD": password, "CODE": code, "SSH_ASKPASS": str(asked), "SSH_ASKPASS_REQUIRE": "force"}
        return subprocess.run(
            ["ssh", "-F", str(config), "-o", "NumberOfPasswordPrompts=1", *options, where, *command],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **answers},
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def launches_session(server, hosts_lab, tmp_path_factory):
    """One environment for all launches of the session."""
    from hosts.launch_lab import LaunchLab

    project = shutil.copytree(PROJECT, tmp_path_factory.mktemp("launches") / "project")
    return LaunchLab(hosts_lab, project)


@pytest.fixture
def launches(launches_session, monkeypatch):
    """`desi`, for launches of the functions in `project/`."""
    monkeypatch.syspath_prepend(str(launches_session.project))
    monkeypatch.chdir(launches_session.project)
    launches_session.begin()
    yield launches_session
    launches_session.clear()
