"""Where a connection leads: the block's fields, else OpenSSH's configuration."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from slurm_ray_flow.blocks.ssh.authentication import Secrets, log_in
from slurm_ray_flow.blocks.ssh.block import SshConnection
from slurm_ray_flow.blocks.ssh.bootstrap import checked_root
from slurm_ray_flow.blocks.ssh.endpoint import Endpoint, password_variable
from slurm_ray_flow.core.errors import LogInFailed, OptionError

CONFIG = """
Include {folder}/more
Host desi
  HostName desi.example.org
  User alice
  Port 2222
  IdentityFile {folder}/%r.key
  IdentitiesOnly yes
  ProxyJump bob@bastion:2022,second
  UserKnownHostsFile {folder}/known {folder}/known2
Host bastion
  HostName bastion.example.org
Host round
  ProxyJump round2
Host round2
  ProxyJump round
Host command
  HostName host.example.org
  ProxyCommand nc -X 5 %h %p %%
  KnownHostsCommand /bin/keys "%H of" %n
  RevokedHostKeys {folder}/%h.revoked
Host alias
  Port 2222
  HostKeyAlias key.name
Host modern
  Ciphers aes256-ctr,aes128-ctr
  KexAlgorithms curve25519-sha256
Host descriptor
  ProxyCommand nc %h %p
  ProxyUseFdpass yes
Host asks-for-the-key
  KnownHostsCommand /bin/keys %K
Host user
  User a$(b)
  ProxyCommand gate %r
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "more").write_text("Host included\n  HostName 10.1.2.3\n  HostKeyAlias key.name\n")
    path = tmp_path / "config"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def endpoint(config: Path, host: str, **fields: object) -> Endpoint:
    return SshConnection(host=host, config_file=config, **fields).endpoint()  # type: ignore[arg-type]


def test_what_is_not_said_comes_from_the_configuration(config: Path) -> None:
    found = endpoint(config, "desi")
    assert (found.host, found.user, found.port) == ("desi.example.org", "alice", 2222)
    assert found.known_as == "[desi.example.org]:2222"
    assert found.key_files == (config.parent / "alice.key",)
    assert found.only_key_files
    assert found.known_hosts[:2] == (config.parent / "known", config.parent / "known2")
    first, second = found.through
    assert (first.host, first.user, first.port) == ("bastion.example.org", "bob", 2022)
    assert second.host == "second"


def test_what_is_said_wins(config: Path) -> None:
    found = endpoint(config, "desi", user="carol", port=22, key_file="/k", known_hosts="/known", proxy_jump="a@b, c")
    assert (found.user, found.port, found.key_files, found.known_hosts) == (
        "carol",
        22,
        (Path("/k"),),
        (Path("/known"),),
    )
    assert str(found.through[0]) == "a@b"
    assert found.through[1].host == "c"
    assert found.known_as == "desi.example.org"


def test_included_files_and_aliases_of_keys_are_heeded(config: Path) -> None:
    found = endpoint(config, "included")
    assert (found.host, found.known_as) == ("10.1.2.3", "key.name")


def test_an_alias_of_keys_has_no_port(config: Path) -> None:
    assert endpoint(config, "alias").known_as == "key.name"


def test_commands_and_files_of_the_configuration_are_heeded(config: Path) -> None:
    found = endpoint(config, "command")
    assert found.proxy_command == "nc -X 5 host.example.org 22 %"
    assert found.known_hosts_command == ("/bin/keys", "host.example.org of", "command")
    assert found.revoked == (config.parent / "host.example.org.revoked",)
    assert endpoint(config, "command", proxy_jump="gate").proxy_command == ""


def test_the_command_by_hand_is_the_whole_one(config: Path) -> None:
    assert endpoint(config, "desi").by_hand == f"ssh -F {config} desi"
    found = SshConnection(host="10.1.2.3", user="bob", port=2222, key_file=Path("~/.ssh/id_x")).endpoint()
    assert found.by_hand == f"ssh -i {Path.home()}/.ssh/id_x -p 2222 bob@10.1.2.3"


def test_algorithms_are_those_that_the_configuration_sets(config: Path) -> None:
    assert endpoint(config, "command").algorithms == ()
    found = dict(endpoint(config, "modern").algorithms)
    assert found == {"ciphers": ("aes256-ctr", "aes128-ctr"), "kexalgorithms": ("curve25519-sha256",)}


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "round", "descriptor", "asks-for-the-key", "user"])
def test_a_host_that_can_not_be_meant_is_refused(config: Path, host: str) -> None:
    with pytest.raises(OptionError):
        endpoint(config, host)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("desi", "DESI_PASSWORD"),
        ("my-lab.ch", "MY_LAB_CH_PASSWORD"),
        ("é", "__PASSWORD"),
        ("10.1.2.3", "_10_1_2_3_PASSWORD"),
    ],
)
def test_the_variable_of_a_password(name: str, variable: str) -> None:
    assert password_variable(name) == variable


def test_a_password_is_in_no_repr(config: Path) -> None:
    block = SshConnection(host="desi", config_file=config, password="very-secret")  # type: ignore[arg-type]
    connection = block.open("desi")
    shown = "".join(map(repr, (block, connection, connection.endpoint, connection._secrets(connection.endpoint))))
    assert "very-secret" not in shown


@pytest.mark.parametrize("root", ["relative", "~user/x", "", "/a\0b"])
def test_a_root_that_can_not_be_meant_is_refused(root: str) -> None:
    with pytest.raises(OptionError):
        checked_root(root)


def test_a_server_that_would_take_a_ticket_of_kerberos_is_told_of(config: Path) -> None:
    server = SimpleNamespace(methods=lambda _: ("gssapi-with-mic",))
    with pytest.raises(LogInFailed, match="Kerberos"):
        log_in(server, endpoint(config, "desi"), Secrets("", lambda *_: "", "DESI_PASSWORD"))  # type: ignore[arg-type]
