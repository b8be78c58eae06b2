"""Keys in all their forms: with a passphrase, in an SSH agent, with a certificate; and servers that take few tries."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from hosts import faults
from hosts.ssh_lab import agent_on, connected, nobody
from slurm_ray_flow.blocks.ssh.connection import ConnectionTimeouts
from slurm_ray_flow.core.errors import ConnectionFailed, HostKeyFailed, LogInFailed
from support import wait_for


@pytest.fixture
def home(hosts_lab, tmp_path, monkeypatch):
    """A home with a configuration that names no key, and where no SSH agent is."""
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    lines = [line for line in Path(hosts_lab.ssh_config).read_text().splitlines() if "Identit" not in line]
    (tmp_path / "config").write_text("\n".join([*lines, f"  IdentityFile {tmp_path}/none", ""]))
    return tmp_path


def new_key(path, passphrase=""):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)], check=True)
    return path


@contextlib.contextmanager
def authorized(host, user, key):
    """The account takes this key, too."""
    file = host.path(f"/etc/ssh/keys/{user}")
    before = file.read_text()
    file.write_text(before + key.with_suffix(".pub").read_text())
    try:
        yield
    finally:
        file.write_text(before)


@contextlib.contextmanager
def ssh_agent(folder, *keys):
    """An SSH agent that holds these keys, in order; gives its socket."""
    path = folder / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL) as process:
        try:
            while not path.exists():
                assert process.poll() is None
            for key in keys:
                environment = {**os.environ, "SSH_AUTH_SOCK": str(path)}
                subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True, capture_output=True)
            yield path
        finally:
            process.terminate()


@contextlib.contextmanager
def account(lab, home, user="frank", **options):
    with agent_on(lab, user=user, config=home / "config", **options) as agent:
        yield agent


def typing(*answers):
    """Answers questions in order; gives what was asked, too."""
    asked, left = [], list(answers)

    def prompt(text, seen):
        asked.append((text, seen))
        return left.pop(0) if left else nobody(text, seen)

    return prompt, asked


def test_a_passphrase_is_asked_for_and_asked_for_once(hosts_lab, home):
    desi, key = hosts_lab["desi"], new_key(home / "locked", "open it")
    prompt, asked = typing("wrong", "open it")
    with authorized(desi, "frank", key), account(hosts_lab, home, key_file=key, prompt=prompt) as agent:
        assert agent.hello["user"] == "frank"
        assert asked == [(f"Passphrase of {key}: ", False)] * 2
        assert faults.kill_sessions(desi, "frank")
        assert agent.ask_all([("files.names", {"path": "/home"})])
        assert agent.connection.times_connected == 2
        assert len(asked) == 2


def test_a_passphrase_that_nobody_knows_is_an_error_that_says_so(hosts_lab, home):
    key = new_key(home / "locked", "open it")
    prompt, asked = typing("a", "b", "c")
    with account(hosts_lab, home, key_file=key, prompt=prompt) as agent:
        with pytest.raises(LogInFailed) as caught:
            agent.hello  # noqa: B018
        assert [text for text, _ in asked[:3]] == [f"Passphrase of {key}: "] * 3
        assert "its passphrase was wrong" in caught.value.where
    with account(hosts_lab, home, key_file=key) as agent, pytest.raises(LogInFailed) as caught:
        agent.hello  # noqa: B018
    assert "nobody can be asked for its passphrase" in caught.value.where


@pytest.mark.parametrize("by", ["variable", "configuration"])
def test_a_key_of_an_ssh_agent_lets_in(hosts_lab, home, monkeypatch, by):
    key = new_key(home / "held", "")
    with authorized(hosts_lab["desi"], "frank", key), ssh_agent(home, key) as path:
        key.unlink()
        if by == "variable":
            monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        else:
            with (home / "config").open("a") as config:
                config.write(f"  IdentityAgent {path}\n")
        with account(hosts_lab, home) as agent:
            assert agent.hello["user"] == "frank"


def test_an_agent_that_is_not_asked_or_does_not_answer_holds_nobody_up(hosts_lab, home, monkeypatch):
    key = new_key(home / "held", "")
    with authorized(hosts_lab["desi"], "frank", key), socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(home / "dead"))
        dead.listen()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(home / "dead"))
        with account(hosts_lab, home, key_file=key) as agent:
            assert agent.hello["user"] == "frank"


@pytest.mark.parametrize("where", ["file", "agent"])
def test_a_certificate_lets_in(hosts_lab, home, monkeypatch, where):
    desi, authority, key = hosts_lab["desi"], new_key(home / "authority"), new_key(home / "mine")
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "frank's", "-n", "frank", f"{key}.pub"]
    subprocess.run(sign, check=True, capture_output=True)
    shutil.copy(f"{authority}.pub", desi.path("/etc/ssh/authority.pub"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(faults.sshd_options(desi, "TrustedUserCAKeys /etc/ssh/authority.pub"))
        if where == "agent":
            monkeypatch.setenv("SSH_AUTH_SOCK", str(stack.enter_context(ssh_agent(home, key))))
        fields = {"key_file": key} if where == "file" else {}
        agent = stack.enter_context(account(hosts_lab, home, **fields))
        assert agent.hello["user"] == "frank"
    assert "ED25519-CERT" in desi.log()


def test_a_server_that_takes_few_tries_takes_the_key_that_is_named(hosts_lab, home, monkeypatch):
    quiet, right = hosts_lab["bastion"], new_key(home / "right")  # desi may have visitors from other tests' runs
    others = [new_key(home / f"other-{number}") for number in range(4)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(faults.sshd_options(quiet, "MaxAuthTries 2"))
        stack.enter_context(authorized(quiet, "frank", right))
        monkeypatch.setenv("SSH_AUTH_SOCK", str(stack.enter_context(ssh_agent(home, *others, right))))
        with account(hosts_lab, home, host="bastion", key_file=right) as agent:
            assert agent.hello["user"] == "frank"
        before = quiet.connections()
        with account(hosts_lab, home, host="bastion", limits=ConnectionTimeouts(first=20)) as agent:
            for _ in range(2):
                with pytest.raises(LogInFailed, match="Too many authentication failures") as caught:
                    agent.hello  # noqa: B018
        assert quiet.connections() == before + 1  # sites block accounts for tries that can't succeed
        assert "key_file" in caught.value.advice


def test_a_server_with_too_many_beginners_is_tried_again(hosts_lab):
    desi = hosts_lab["desi"]
    with faults.sshd_options(desi, "MaxStartups 1"), socket.create_connection((desi.address, 22)) as beginner:
        beginner.recv(3)
        with agent_on(hosts_lab, limits=ConnectionTimeouts(first=1)) as agent, pytest.raises(ConnectionFailed):
            agent.hello  # noqa: B018
        before = desi.log().count("MaxStartups")

        def leave_when_another_was_turned_away():
            wait_for(lambda: desi.log().count("MaxStartups") > before)
            beginner.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=leave_when_another_was_turned_away).start()
        with agent_on(hosts_lab, limits=ConnectionTimeouts(first=30)) as agent:
            assert agent.hello["user"] == "frank"


def test_an_authority_for_host_keys_makes_no_key_known(hosts_lab, home):
    authority = new_key(home / "authority")
    known = home / "known_hosts"
    known.write_text(f"@cert-authority * {authority.with_suffix('.pub').read_text()}")
    with (
        connected(hosts_lab, "desi", "frank", known_hosts=known) as connection,
        pytest.raises(HostKeyFailed, match="not known") as caught,
    ):
        connection.opened()
    assert "certificates of host keys are not read" in caught.value.where
    assert "srf trust desi" in caught.value.advice
