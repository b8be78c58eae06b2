"""`srf init` that asks, in a real terminal, against real servers and a real Slurm."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hosts.lab import Lab
from slurm_ray_flow import OptionError, SlurmCluster, SshConnection, SshServer
from slurm_ray_flow.blocks.clusters import saved_clusters
from slurm_ray_flow.blocks.server import connected
from srf_command import Command
from terminal import Terminal

pytestmark = pytest.mark.server
SRF = str(Path(sys.executable).with_name("srf"))


@pytest.fixture
def name() -> str:
    return f"guided-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """The user's file of known hosts, which knows none yet."""
    return tmp_path / "known_hosts"


@pytest.fixture
def terminals(server: Any, known: Path) -> Iterator[Any]:
    """`srf init` in a terminal."""
    made: list[Terminal] = []

    def start(*options: str) -> Terminal:
        made.append(Terminal(SRF, "init", "--known-hosts", str(known), *options, SRF_PROGRESS="plain"))
        return made[-1]

    yield start
    for terminal in made:
        terminal.close()


def configuration(folder: Path, lab: Lab, host: str) -> Path:
    """An OpenSSH configuration that includes another one, as users have it."""
    hosts = folder / "hosts"
    hosts.write_text(f"Host {host}\n  HostName {lab[host].address}\n  User alice\n  IdentityFile {lab.key('alice')}\n")
    config = folder / "config"
    config.write_text(f"Include {hosts}\nHost git.example.org\n  User git\nHost *.example.org !x\n  Compression no\n")
    return config


def test_a_server_of_the_ssh_configuration_is_saved(
    terminals: Any, server: Any, hosts_lab: Lab, tmp_path: Path, name: str
) -> None:
    terminal = terminals("--config-file", str(configuration(tmp_path, hosts_lab, "desi")))
    listed = terminal.until("Number, or user@host")
    assert "desi" in listed
    assert "git.example.org" not in listed
    terminal.type("99\n")
    terminal.answer("'99' is none of them", "desi")
    terminal.answer("A name for it", "Not A Name")
    terminal.answer("can't be a cluster's name", name)
    terminal.answer("Is this the server's key", "yes")
    terminal.answer("Save it")
    terminal.until(f"{name} can be used")
    assert terminal.end() == 0
    with connected(server):
        found = SshServer.load(name)
    assert (found.connection.host, found.connection.reconnect_within) == ("desi", 3600.0)


def test_a_wrong_user_is_asked_again_and_the_password_may_be_saved(
    terminals: Any, server: Any, hosts_lab: Lab, name: str
) -> None:
    terminal = terminals(name, "--host", hosts_lab["desi"].address, "--user", "frank", "--yes")
    terminal.until("host key is not known")
    assert terminal.end() == 1
    terminal = terminals("--host", hosts_lab["desi"].address, "--user", "frank")
    terminal.answer("A name for it", name)
    terminal.answer("Is this the server's key", "yes")
    terminal.answer("Your user name there", "bob")
    terminal.answer("A private key")
    for _ in range(2):
        terminal.until("Password of bob@")
        terminal.type("wrong\n")
    terminal.until("Password of bob@")
    terminal.type(hosts_lab.password("bob") + "\n")
    terminal.answer("Save the password", "yes")
    terminal.answer("Save it")
    terminal.until(f"{name} can be used")
    assert terminal.end() == 0
    assert hosts_lab.password("bob") not in terminal.raw
    with connected(server):
        found = SshServer.load(name)
    assert found.connection.password is not None
    assert found.connection.password.get_secret_value() == hosts_lab.password("bob")


def test_ctrl_c_saves_nothing(terminals: Any, server: Any, hosts_lab: Lab, known: Path, name: str) -> None:
    terminal = terminals("--host", hosts_lab["desi"].address, "--user", "frank")
    terminal.answer("A name for it", name)
    terminal.until("Is this the server's key")
    terminal.until("[no]: ")
    terminal.interrupt()
    terminal.until("Nothing was saved")
    assert terminal.end() == 130
    assert not known.exists()
    with connected(server):
        assert name not in [one.name for one in saved_clusters()]
        with pytest.raises(ValueError, match=name):
            SshConnection.load(name)


def test_a_slurm_cluster_is_found_out_and_a_partition_chosen(
    terminals: Any, server: Any, slurm_lab: Lab, name: str
) -> None:
    login = ["--host", slurm_lab["login"].address, "--user", "alice", "--key-file", str(slurm_lab.key("alice"))]
    terminal = terminals(*login)
    terminal.answer("A name for it", name)
    terminal.answer("Is this the server's key", "yes")
    terminal.answer("Slurm is there", "y")
    terminal.answer("Partition", "shrot")
    terminal.answer("did you mean 'short'?", "short")
    terminal.answer("Save it")
    terminal.until(f"{name} can be used")
    assert terminal.end() == 0
    with connected(server):
        assert SlurmCluster.load(name).partition == "short"


def test_without_a_question_what_is_proposed_is_taken(
    server: Any, srf: Command, slurm_lab: Lab, known: Path, name: str
) -> None:
    login = ["--host", slurm_lab["login"].address, "--user", "alice", "--key-file", str(slurm_lab.key("alice"))]
    words = ["init", name, *login, "--known-hosts", str(known), "--yes"]
    refused = srf(*words)
    assert (refused.returncode, "--fingerprint" in refused.stderr) == (1, True), refused.stderr
    fingerprint = next(word for word in (refused.stdout + refused.stderr).split() if word.startswith("SHA256:"))
    done = srf(*words, "--fingerprint", fingerprint, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["name"], document["kind"]) == (name, "slurm-cluster")
    assert {one["state"] for one in document["findings"]} == {"ok"}
    with connected(server):
        assert SlurmCluster.load(name).partition == ""


def test_without_a_terminal_nobody_is_asked(server: Any, srf: Command) -> None:
    done = srf("init")
    assert (done.returncode, "no terminal" in done.stderr) == (2, True), done.stderr


def test_names_are_proposed_that_remind_of_the_site() -> None:
    from slurm_ray_flow.cli.guide import _parse_host, name_for

    assert name_for("login1.curnagl.example.org") == "curnagl"
    assert name_for("Desi.example.org") == "desi"
    assert name_for("10.0.0.1") == "server"
    assert _parse_host("ssh alice@desi:2222") == {"user": "alice", "host": "desi", "port": 2222}
    with pytest.raises(OptionError):
        _parse_host("-oProxyCommand=x")
