"""Files over the connection: by rsync, through cuts, and where a server allows one session only."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import PurePosixPath

import pytest

from hosts import faults
from hosts.ssh_lab import agent_on
from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts
from slurm_ray_flow.blocks.transfer import send_snapshot
from slurm_ray_flow.core.errors import SyncError
from slurm_ray_flow.core.snapshot import manifest

SHORT = ConnectionTimeouts(connect=3, first=5, again=60, quiet=0.5, patience=1.0)


@pytest.fixture
def large(tmp_path):
    path = tmp_path / "large file"
    path.write_bytes(os.urandom(24 * 1024 * 1024))
    return path


@pytest.mark.parametrize("user", ["alice", "erin"])
def test_a_file_goes_there_and_back_private_and_whole(hosts_lab, large, tmp_path, user):
    desi = hosts_lab["desi"]
    with hosts_lab.road("desi") as road, agent_on(hosts_lab, user=user, config=road.ssh_config) as agent:
        there = agent.root / "it's; rm -rf $HOME" / "a b"
        agent.copy_to(large, there)
        agent.copy_from(there, tmp_path / "back", large.stat().st_size)
        assert road.counts().connections == 1
        assert stat.S_IMODE(desi.path(str(there)).stat().st_mode) == 0o600
        assert [path.name for path in desi.path(str(there)).parent.iterdir()] == ["a b"]
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    assert stat.S_IMODE((tmp_path / "back").stat().st_mode) == 0o600


def test_a_file_that_is_not_there_is_an_error_and_not_tried_again(hosts_lab, tmp_path):
    with agent_on(hosts_lab) as agent, pytest.raises(SyncError):
        agent.copy_from(agent.root / "none", tmp_path / "back", 1)
    assert list(tmp_path.iterdir()) == []


def test_no_more_of_a_file_comes_than_it_was_said_to_have(hosts_lab, large, tmp_path):
    home = tmp_path / "home"
    with agent_on(hosts_lab) as agent:
        agent.copy_to(large, agent.root / "large")
        with pytest.raises(SyncError, match="larger than"):
            agent.copy_from(agent.root / "large", home / "back", large.stat().st_size // 2)
    assert list(home.iterdir()) == []


def test_a_snapshot_goes_there_and_only_what_changed_goes_again(hosts_lab, tmp_path):
    project = tmp_path / "two words"
    project.mkdir()
    (project / "main.py").write_text("x = 1\n")
    (project / "new\nline.txt").write_text("y\n")

    def sent(agent):
        found = manifest([], project=project, working_directory=project, include=["."])
        return send_snapshot(found, target=agent.target, project_key="p")

    with agent_on(hosts_lab, user="alice") as agent:
        first = sent(agent)
        (project / "main.py").write_text("x = 2\n")
        second = sent(agent)
        assert (first.files, second.files) == (2, 1)
        there = hosts_lab["desi"].path(str(PurePosixPath(second.folder) / "project" / "main.py"))
        assert there.read_text() == "x = 2\n"


def test_a_transfer_goes_on_after_a_cut_with_what_has_arrived(hosts_lab, large, tmp_path):
    desi = hosts_lab["desi"]
    with hosts_lab.road("desi", delay=0.02) as road, agent_on(hosts_lab, config=road.ssh_config, limits=SHORT) as agent:
        agent.hello  # noqa: B018
        there = agent.root / "large"
        road.counts(reset=True)

        def cut():
            faults.kill_sessions(desi, "frank")

        timer = threading.Timer(0.8, cut)
        timer.start()
        agent.copy_to(large, there)
        timer.join()
        assert agent.connection.times_connected == 2
        assert road.counts().sent < 1.5 * large.stat().st_size  # not twice: it went on from what was there
        assert desi.path(str(there)).read_bytes() == large.read_bytes()


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_server_with_few_sessions_is_enough(hosts_lab, large, tmp_path, sessions):
    desi = hosts_lab["desi"]
    with (
        faults.sshd_options(desi, f"MaxSessions {sessions}"),
        hosts_lab.road("desi") as road,
        agent_on(hosts_lab, config=road.ssh_config) as agent,
    ):
        problems = []

        def there_and_back(number):
            try:
                there = agent.root / f"large-{number}"
                agent.copy_to(large, there)
                agent.copy_from(there, tmp_path / f"back-{number}", large.stat().st_size)
                assert (tmp_path / f"back-{number}").read_bytes() == large.read_bytes()
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=there_and_back, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert problems == []
        assert agent.ask_all([("files.names", {"path": "/none"})]) == [[]]
        assert road.counts().connections == 1
