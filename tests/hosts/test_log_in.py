"""Each way to log in, by OpenSSH."""

import pytest


@pytest.mark.parametrize("name", ["bastion", "desi", "offline", "inner"])
def test_every_host_answers_by_its_own_name(ssh, name):
    assert ssh(f"frank@{name}", "hostname").stdout.strip() == name


def test_a_password_lets_in_and_a_wrong_one_does_not(hosts_lab, ssh):
    assert "uid=2002(bob)" in ssh("bob@desi", "id", password=hosts_lab.password("bob")).stdout
    assert ssh("bob@desi", "id", password="wrong").returncode == 255


@pytest.mark.parametrize("user", ["carol", "dave"])
def test_a_one_time_code_is_good_once(hosts_lab, ssh, user):
    code, password = hosts_lab["desi"].new_code(user), hosts_lab.password(user)
    assert f"({user})" in ssh(f"{user}@desi", "id", password=password, code=code).stdout
    assert ssh(f"{user}@desi", "id", password=password, code=code).returncode == 255


def test_a_code_alone_or_a_key_alone_does_not_let_in(hosts_lab, ssh):
    code = hosts_lab["desi"].new_code("carol")
    assert ssh("carol@desi", "id", password="wrong", code=code).returncode == 255
    assert ssh("dave@desi", "id", options=("-o", "PreferredAuthentications=publickey")).returncode == 255


def test_the_log_counts_connections_and_log_ins(hosts_lab, ssh):
    quiet = hosts_lab["bastion"]  # other tests' runs on desi may be watched over a connection of Prefect's server
    connections, log_ins = quiet.connections(), quiet.logins("frank")
    ssh("frank@bastion", "true")
    assert (quiet.connections(), quiet.logins("frank")) == (connections + 1, log_ins + 1)


def test_a_noisy_account_says_more_than_it_was_asked_for(ssh):
    said = ssh("alice@desi", "echo", "asked")
    assert said.stdout.endswith("\nasked\n")
    assert "é" in said.stdout
    assert "立入禁止" in said.stderr


def test_inner_is_reached_from_the_bastion_only(hosts_lab, ssh):
    said = ssh("frank@inner", "echo $SSH_CONNECTION").stdout.split()[0]
    bastion = hosts_lab["bastion"].run("frank", ["hostname", "-I"]).stdout.split()
    assert said in bastion
    assert ssh("frank@inner", "true", options=("-o", "ProxyJump=none", "-o", "ConnectTimeout=2")).returncode == 255
