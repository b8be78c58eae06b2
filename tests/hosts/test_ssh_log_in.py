"""Each way to log in, by our own connection; and whom it does not trust."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from hosts import faults
from hosts.ssh import host_key
from hosts.ssh_lab import agent_on, connected
from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed, LogInFailed, OptionError
from support import wait_for


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
        connection.opened()
    assert f"srf trust {host}" in caught.value.advice
    assert "SHA256:" in caught.value.where
    assert not caught.value.transient


def test_a_changed_host_key_is_an_error_that_says_what_it_may_mean(hosts_lab):
    desi = hosts_lab["desi"]
    with faults.other_host_key(desi), connected(hosts_lab, "desi", "frank") as connection:
        with pytest.raises(HostKeyFailed, match="has changed") as caught:
            connection.opened()
        assert "ssh-keygen -R" in caught.value.advice
        assert "srf trust desi" in caught.value.advice


def test_hashed_names_are_known(hosts_lab, tmp_path):
    known = tmp_path / "known_hosts"
    shutil.copy(hosts_lab.known_hosts, known)
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(known)], check=True, capture_output=True)
    assert re.match(r"\|1\|", known.read_text())
    with agent_on(hosts_lab, known_hosts=known) as agent:
        assert agent.hello["host"] == "desi"


def configured(hosts_lab, folder, *lines):
    """The lab's configuration, with more for all hosts."""
    path = folder / "config"
    path.write_text("\n".join(["Host *", *lines, Path(hosts_lab.ssh_config).read_text()]))
    return path


@pytest.mark.parametrize("form", ["text", "list of ssh-keygen"])
def test_a_revoked_host_key_is_refused_although_it_is_known(hosts_lab, tmp_path, form):
    keys, revoked = tmp_path / "keys.pub", tmp_path / "revoked"
    keys.write_text("".join(f"{key} of desi\n" for key in host_key(hosts_lab["desi"])))
    if form == "text":
        shutil.copy(keys, revoked)
    else:
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", str(revoked), str(keys)], check=True)
    config = configured(hosts_lab, tmp_path, f"RevokedHostKeys {revoked}")
    with (
        connected(hosts_lab, "desi", "frank", config=config) as connection,
        pytest.raises(HostKeyFailed, match="revoked"),
    ):
        connection.opened()
    with connected(hosts_lab, "offline", "frank", config=config) as connection:
        assert connection.opened().alive


def test_a_list_of_revoked_keys_that_is_not_there_lets_nobody_through(hosts_lab, tmp_path):
    config = configured(hosts_lab, tmp_path, f"RevokedHostKeys {tmp_path}/none")
    with (
        connected(hosts_lab, "desi", "frank", config=config) as connection,
        pytest.raises(HostKeyFailed, match="can't be read"),
    ):
        connection.opened()


def test_no_other_algorithms_are_used_than_are_allowed(hosts_lab, tmp_path):
    chosen = ("Ciphers aes256-ctr", "MACs hmac-sha2-512", "KexAlgorithms ecdh-sha2-nistp384")
    config = configured(hosts_lab, tmp_path, *chosen, "HostKeyAlgorithms ssh-ed25519")
    with connected(hosts_lab, "desi", "frank", config=config) as connection:
        transport = connection.opened()._transport
        assert (transport.local_cipher, transport.remote_mac) == ("aes256-ctr", "hmac-sha2-512")
        assert transport.get_security_options().kex == ("ecdh-sha2-nistp384",)
        assert transport.host_key_type == "ssh-ed25519"


def test_algorithms_that_can_not_be_used_are_told_at_once(hosts_lab, tmp_path):
    config = configured(hosts_lab, tmp_path, "Ciphers chacha20-poly1305@openssh.com")
    with (
        connected(hosts_lab, "desi", "frank", config=config) as connection,
        pytest.raises(OptionError, match="ciphers") as caught,
    ):
        connection.opened()
    assert "aes256-ctr" in caught.value.advice


def test_a_proxy_command_leads_there_and_ends_with_the_connection(hosts_lab, tmp_path):
    noted = tmp_path / "pid"
    config = configured(hosts_lab, tmp_path, f"ProxyCommand sh -c 'echo $$ > {noted}; exec socat - TCP:%h:%p'")
    with agent_on(hosts_lab, config=config) as agent:
        assert agent.hello["host"] == "desi"
        pid = noted.read_text().strip()
        assert Path(f"/proc/{pid}").exists()
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def test_a_proxy_command_that_leads_nowhere_is_heard(hosts_lab, tmp_path):
    config = configured(hosts_lab, tmp_path, "ProxyCommand sh -c 'echo the gate is closed >&2; exit 1'")
    with (
        agent_on(hosts_lab, config=config, limits=ConnectionTimeouts(first=1)) as agent,
        pytest.raises(ConnectionFailed, match="the gate is closed"),
    ):
        agent.hello  # noqa: B018


def test_a_proxy_command_whose_program_is_not_here_is_not_tried_again(hosts_lab, tmp_path):
    config = configured(hosts_lab, tmp_path, "ProxyCommand no-such-gate %h %p")
    with agent_on(hosts_lab, config=config) as agent, pytest.raises(ConnectionFailed) as caught:
        agent.hello  # noqa: B018
    assert "ProxyCommand" in caught.value.advice


def test_a_command_for_known_hosts_is_asked(hosts_lab, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("".join(f"desi.lab {key}\n" for key in host_key(hosts_lab["desi"])))
    config = configured(hosts_lab, tmp_path, "HostKeyAlias desi.lab", f"KnownHostsCommand /bin/grep %H {keys}")
    none = {"config": config, "known_hosts": tmp_path / "none"}
    with connected(hosts_lab, "desi", "frank", **none) as connection:
        assert connection.opened().alive
    keys.unlink()
    with (
        connected(hosts_lab, "desi", "frank", **none) as connection,
        pytest.raises(HostKeyFailed, match="KnownHostsCommand"),
    ):
        connection.opened()


def test_a_server_that_is_not_there_is_tried_for_a_while(hosts_lab):
    with (
        faults.no_sshd(hosts_lab["desi"]),
        agent_on(hosts_lab, limits=ConnectionTimeouts(first=1)) as agent,
        pytest.raises(ConnectionFailed, match="can't be reached") as caught,
    ):
        agent.hello  # noqa: B018
    assert caught.value.transient


@contextlib.contextmanager
def expired(host, user):
    """An account that PAM refuses once the proof was good."""
    host.run("root", ["usermod", "--expiredate", "1", user])
    try:
        yield
    finally:
        host.run("root", ["usermod", "--expiredate", "", user])


@pytest.mark.parametrize("user", ["alice", "bob"])
def test_an_account_that_is_closed_is_told_at_once_and_nothing_is_sent_again(hosts_lab, user):
    desi = hosts_lab["desi"]
    secret = {} if user == "alice" else {"password": hosts_lab.password(user)}
    with expired(desi, user), hosts_lab.road("desi") as road:
        with agent_on(hosts_lab, user=user, config=road.ssh_config, **secret) as agent:
            for _ in range(2):
                with pytest.raises(LogInFailed, match="closed the connection") as caught:
                    agent.hello  # noqa: B018
        assert road.counts().connections == 1
    assert "account has expired" in caught.value.what


def test_a_log_in_that_breaks_off_is_tried_again_where_it_has_worked(hosts_lab):
    """The login node comes back from its maintenance, and lets nobody in for a moment."""
    desi = hosts_lab["desi"]
    with agent_on(hosts_lab, user="bob", password=hosts_lab.password("bob")) as agent:
        agent.hello  # noqa: B018
        with expired(desi, "bob"):
            faults.kill_sessions(desi, "bob")
            asked = threading.Thread(target=lambda: agent.ask_all([("files.names", {"path": "/"})]))
            before = desi.connections()
            asked.start()
            wait_for(lambda: desi.connections() > before)
        asked.join(60)
        assert agent.connection.times_connected == 2
