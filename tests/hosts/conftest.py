"""OpenSSH's client, with answers; and a host that functions are launched on."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hosts.launcher import own

CLUSTERS = ("desi-launches", "pretend-launches")
"""As the functions in `project/` call them."""
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

    def run(where, *command, password="", code="", options=(), config=hosts_lab.ssh_config, timeout=180):
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
def project(tmp_path_factory):
    """The user's project, where this session's launches start from, with the clusters as they are called here."""
    folder = shutil.copytree(PROJECT, tmp_path_factory.mktemp("launches") / "project")
    for file in folder.glob("*.py"):
        for name in CLUSTERS:
            file.write_text(file.read_text().replace(f'"{name}"', f'"{own(name)}"'))
    return folder


@pytest.fixture
def in_project(project, monkeypatch):
    """Be in it, as a user is."""
    monkeypatch.syspath_prepend(str(project))
    monkeypatch.chdir(project)


@pytest.fixture(scope="session")
def launches_session(server, hosts_lab, project):
    """One environment for all launches of the session."""
    from hosts.launch_lab import LaunchLab

    return LaunchLab(hosts_lab, project)


@pytest.fixture
def launches(launches_session, in_project):
    """`desi`, for launches of the functions in `project/`."""
    launches_session.begin()
    yield launches_session
    launches_session.clear()


@pytest.fixture(scope="session")
def slurm_launches_session(server, slurm_lab, project):
    """The same on a Slurm cluster that keeps no accounts."""
    from hosts.slurm_launch_lab import SlurmLaunchLab

    return SlurmLaunchLab(slurm_lab, project, own("pretend-launches"))


@pytest.fixture
def jobs(slurm_launches_session, in_project):
    """A Slurm cluster, for launches of the functions in `project/`; nothing is left on it."""
    yield slurm_launches_session
    slurm_launches_session.clear()


@pytest.fixture(scope="session")
def accounted_launches_session(server, accounting_lab, project):
    """And on one that keeps accounts."""
    from hosts.slurm_launch_lab import SlurmLaunchLab

    return SlurmLaunchLab(accounting_lab, project, own("accounted-launches"))


@pytest.fixture
def accounted(accounted_launches_session, in_project):
    """The same with accounts."""
    yield accounted_launches_session
    accounted_launches_session.clear()
