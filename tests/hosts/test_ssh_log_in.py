"""Each way to log in, by our own connection; and whom it does not trust."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from hosts import faults
from hosts.ssh_lab import agent_on, connected
from slurm_ray_flow.blocks.ssh.connection import Limits
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed, LogInFailed


@pytest.mark.parametrize("user", ["alice", "erin", "frank"])
def test_a_key_lets_in_whatever_the_shell_and_its_noise(hosts_lab, user):
    root = "~/it's; rm -rf $HOME"
    with hosts_lab.road("desi") as road, agent_on(hosts_lab, "desi", user, root, config=road.ssh_config) as agent:
        assert agent.hello["user"] == user
        assert str(agent.root) == f"/home/{user}/it's; rm -rf $HOME"
        done = agent.ask_all([("commands.run", {"argv": ["cat"], "data": b"asked", "timeout": 30})])[0]
        assert done == {"exit_code": 0, "stdout": "asked", "stderr": ""}
        assert road.counts().connections == 1


def test_a_password_lets_in_and_a_wrong_one_is_said_once(hosts_lab):
    with agent_on(hosts_lab, user="bob", password=hosts_lab.password("bob")) as agent:
        assert agent.hello["user"] == "bob"
    with (
        hosts_lab.road("desi") as road,
        agent_on(hosts_lab, user="bob", password="wrong-and-secret", config=road.ssh_config) as agent,
    ):
        for _ in range(3):  # the second and third time nobody asks the server
            with pytest.raises(LogInFailed) as caught:
                agent.hello  # noqa: B018
        assert road.counts().connections == 1
    assert "wrong-and-secret" not in str(caught.value) + repr(caught.value)
    assert "DESI_PASSWORD" in caught.value.advice


@pytest.mark.parametrize("user", ["carol", "dave"])
def test_a_code_is_asked_for_once_a_connection(hosts_lab, user):
    asked = []

    def prompt(text, seen):
        asked.append(text)
        return hosts_lab["desi"].new_code(user)

    with agent_on(hosts_lab, user=user, password=hosts_lab.password(user), prompt=prompt) as agent:
        for _ in range(3):
            agent.ask_all([("files.names", {"path": "/"})])
    assert len(asked) == 1
    assert "One-time code" in asked[0]


def test_a_code_that_nobody_can_be_asked_for_is_an_error_at_once(hosts_lab):
    with (
        agent_on(hosts_lab, user="carol", password=hosts_lab.password("carol")) as agent,
        pytest.raises(LogInFailed, match="nobody can be asked") as caught,
    ):
        agent.hello  # noqa: B018
    assert "One-time code" in caught.value.where


def test_a_jump_host_is_passed_and_each_host_sees_one_connection(hosts_lab):
    inner, bastion = hosts_lab["inner"], hosts_lab["bastion"]
    before = inner.connections(), bastion.connections()
    with agent_on(hosts_lab, "inner") as agent:
        assert agent.hello["host"] == "inner"
    assert (inner.connections(), bastion.connections()) == (before[0] + 1, before[1] + 1)


def test_a_jump_host_can_be_named_in_the_block(hosts_lab):
    with agent_on(hosts_lab, "desi", proxy_jump="frank@bastion") as agent:
        said = agent.ask_all([("commands.run", {"argv": ["sh", "-c", "echo $SSH_CONNECTION"], "timeout": 30})])[0]
    assert said["stdout"].split()[0] in hosts_lab["bastion"].run("frank", ["hostname", "-I"]).stdout.split()


@pytest.mark.parametrize("host", ["desi", "inner"])
def test_an_unknown_host_key_is_an_error_that_names_the_command(hosts_lab, tmp_path, host):
    with (
        connected(hosts_lab, host, "frank", known_hosts=tmp_path / "none") as connection,
        pytest.raises(HostKeyFailed, match="not known") as caught,
    ):
        connection.wire()
    assert f"srf trust {host}" in caught.value.advice
    assert "SHA256:" in caught.value.where
    assert not caught.value.transient


def test_a_changed_host_key_is_an_error_that_says_what_it_may_mean(hosts_lab):
    desi = hosts_lab["desi"]
    with faults.other_host_key(desi), connected(hosts_lab, "desi", "frank") as connection:
        with pytest.raises(HostKeyFailed, match="has changed") as caught:
            connection.wire()
        assert "ssh-keygen -R" in caught.value.advice
        assert "srf trust desi" in caught.value.advice


def test_hashed_names_are_known(hosts_lab, tmp_path):
    known = tmp_path / "known_hosts"
    shutil.copy(hosts_lab.known_hosts, known)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert re.match(r"\|1\|", known.read_text())
    with agent_on(hosts_lab, known_hosts=known) as agent:
        assert agent.hello["host"] == "desi"


def test_a_server_that_is_not_there_is_tried_for_a_while(hosts_lab):
    with (
        faults.no_sshd(hosts_lab["desi"]),
        agent_on(hosts_lab, limits=Limits(first=1)) as agent,
        pytest.raises(ConnectionFailed, match="can't be reached") as caught,
    ):
        agent.hello  # noqa: B018
    assert caught.value.transient
